"""The training loop: truncated backpropagation over streams of tokens, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from noisin_pyro.infer.noisin_elbo import NoisinELBO
from noisin_pyro.infer.prior_guide import PriorGuide
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.sequence import detach_state
from noisin_pyro.text.batching import streams, window_count, windows
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.build import averaged_weights, build_optimizer
from noisin_pyro.training.checkpoint import load_checkpoint, save_checkpoint
from noisin_pyro.training.config import Schedule, TrainConfig
from noisin_pyro.training.interrupt import Interruptible

__all__ = ["Interrupted", "Progress", "Trainer"]

CHECK_EVERY = 20  # steps between two looks at the losses, so that a GPU need not wait at each


class Interrupted(Exception):
    """Ctrl-C was pressed, and a checkpoint has been saved."""


@dataclass
class Progress:
    """Where a training stands; with the weights and random states, all that a resume needs.

    ``history`` holds one row per finished epoch; its figures are in nats per token.
    """

    epoch: int = 1
    step: int = 0
    nats: float = 0.0
    tokens: int = 0
    best: float = math.inf
    since_best: int = 0
    seconds: float = 0.0
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains one language model, and keeps ``last.ckpt`` and ``best.ckpt`` in its folder.

    Args:
        fabric: a launched Fabric; each of its processes reads its own streams.
        config: the run.
        model: the model, on the CPU, built with Pyro's ``module_local_params`` on (or the global
            param store would hold its parameters too).
        corpus: the text.
        folder: where checkpoints go.
        label: what the progress bar calls the model.
        checkpoint_seconds: seconds of training between two checkpoints within an epoch.
        on_epoch: called with the progress after each epoch and once when resuming.
        on_steps: called with the progress and the number of steps in an epoch every few steps;
            takes the place of the progress bar.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        model: LanguageModel,
        corpus: Corpus,
        folder: Path,
        label: str,
        checkpoint_seconds: float = 60.0,
        on_epoch: Callable[[Progress], None] = lambda progress: None,
        on_steps: Callable[[Progress, int], None] | None = None,
    ) -> None:
        self.fabric, self.config, self.model = fabric, config, model
        self.corpus, self.folder, self.label = corpus, folder, label
        self.checkpoint_seconds = checkpoint_seconds
        self.on_epoch, self.on_steps = on_epoch, on_steps
        share = config.batch_size // fabric.world_size
        first = fabric.global_rank * share
        own = slice(first, first + share)
        self.stream = streams(corpus.train, config.batch_size)[:, own].to(fabric.device)
        self.steps = window_count(self.stream, config.unroll)
        objective = NoisinELBO()(model, PriorGuide(model))
        optimizer = build_optimizer(config, objective, self.steps)
        self.objective, self.optimizer = fabric.setup(objective, optimizer)
        self.objective.mark_forward_method("with_state")
        self.progress = Progress()
        self.state: Any = None

    def fit(self) -> Progress:
        """Trains to the last epoch or until patience runs out; resumes from ``last.ckpt``.

        Raises:
            Interrupted: if Ctrl-C was pressed; ``last.ckpt`` holds the step it came at.
            ValueError: if ``last.ckpt`` is damaged or of another text.
            FloatingPointError: if the loss or the gradient became NaN or infinite.
        """
        torch.manual_seed(self.config.seed + 1000 * self.fabric.global_rank)
        if (self.folder / "last.ckpt").exists():
            self._restore(load_checkpoint(self.folder / "last.ckpt"))
            self.on_epoch(self.progress)
        schedule = Schedule.parse(self.config.schedule)
        with (
            Interruptible() as stop,
            pyro.validation_enabled(False),
        ):
            while not self.progress.finished:
                bar = self._bar()
                self._epoch(stop, bar)
                self._end_epoch(schedule)
                row = self.progress.history[-1]
                bar.set_postfix_str(self._figures(row["train"]) + f" valid {_ppl(row['valid'])}")
                bar.close()
                if self._agreed(stop.requested)[0]:
                    raise Interrupted
        return self.progress

    def _epoch(self, stop: Interruptible, bar: Any) -> None:
        progress, config = self.progress, self.config
        self.model.train()
        clock = saved = time.monotonic()
        losses: list[Tensor] = []
        for x, y in windows(self.stream, config.unroll, progress.step):
            total, state = self.objective.with_state(x, y, self.state)
            loss = total / y.numel()
            self.fabric.backward(loss)
            norm = self.fabric.clip_gradients(
                self.objective,
                self.optimizer,
                max_norm=config.clip_norm or math.inf,
                error_if_nonfinite=False,
            )
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state = detach_state(state)
            assert norm is not None
            losses.append(torch.stack([total.detach(), norm]))
            progress.step += 1
            progress.tokens += y.numel()
            now = time.monotonic()
            due, stopped = now - saved >= self.checkpoint_seconds, stop.requested
            at_once = (due or stopped) and self.fabric.world_size == 1
            if len(losses) < CHECK_EVERY and not at_once:
                continue
            due, stopped = self._agreed(due, stopped)
            self._count(losses)
            progress.seconds, clock = progress.seconds + now - clock, now
            bar.update(len(losses))
            bar.set_postfix_str(self._figures(progress.nats / progress.tokens), refresh=False)
            losses.clear()
            if self.on_steps:
                self.on_steps(progress, self.steps)
            if due or stopped:
                self._save("last.ckpt")
                saved = time.monotonic()
            if stopped:
                bar.close()
                raise Interrupted
        self._count(losses)
        bar.update(len(losses))
        progress.seconds += time.monotonic() - clock

    def _count(self, losses: list[Tensor]) -> None:
        """Adds up losses, each with its gradient's norm, and stops at one that is not finite."""
        rows = torch.stack(losses).tolist() if losses else []
        first = self.progress.step - len(rows) + 1
        for step, (nats, norm) in enumerate(rows, first):
            if not (math.isfinite(nats) and math.isfinite(norm)):
                name, value = ("gradient", norm) if math.isfinite(nats) else ("loss", nats)
                raise FloatingPointError(
                    f"the {name} became {value} in epoch {self.progress.epoch} at step {step} of "
                    f"{self.label}; "
                    f"{self.folder / 'last.ckpt'} holds the last good checkpoint, lower "
                    "learning_rate or clip_norm"
                )
            self.progress.nats += nats

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes, so that all of them save or stop at the same step."""
        if self.fabric.world_size == 1:
            return list(wishes)
        held = torch.tensor(wishes, dtype=torch.int32, device=self.fabric.device)
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
        return held.bool().tolist()

    def _end_epoch(self, schedule: Schedule) -> None:
        progress, config = self.progress, self.config
        nats, tokens = map(sum, zip(*_gathered(self.fabric, (progress.nats, progress.tokens))))
        with averaged_weights(self.optimizer.optimizer):
            valid = evaluate(self.model, self.corpus.valid, unroll=config.unroll).nats
        spread = [None if s is None else s.detach().mean().item() for s in self.model.rnn.spread]
        rate = self.optimizer.param_groups[0]["lr"]
        progress.history.append(
            {
                "epoch": progress.epoch,
                "train": nats / tokens,
                "valid": valid,
                "spread": spread,
                "learning_rate": rate,
                "seconds": progress.seconds,
            }
        )
        worsened = not valid < (progress.history[-2]["valid"] if progress.epoch > 1 else math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * schedule.factor(progress.epoch, worsened)
        better = valid < progress.best
        progress.best = min(progress.best, valid)
        progress.since_best = 0 if better else progress.since_best + 1
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.finished = self._is_over()
        progress.nats, progress.tokens, progress.seconds, self.state = 0.0, 0, 0.0, None
        if better:
            self._save("best.ckpt")
        self._save("last.ckpt")
        self.on_epoch(progress)

    def load_best(self) -> None:
        """Gives the model the weights of the best epoch (for ASGD, their average)."""
        saved = load_checkpoint(self.folder / "best.ckpt")
        self.model.load_state_dict(saved["averaged"] or saved["model"])

    def _save(self, name: str) -> None:
        averaged = None
        with averaged_weights(self.optimizer.optimizer):
            if self.config.optimizer == "asgd":
                averaged = {k: v.clone() for k, v in self.model.state_dict().items()}
        own = {"state": self.state, "rng": _random_state()}
        payload = {
            **asdict(self.progress),
            "config": asdict(self.config),
            "label": self.label,
            "text": self.corpus.sha256,
            "model": self.model.state_dict(),
            "averaged": averaged,
            "optimizer": self.optimizer.state_dict(),
            "processes": _gathered(self.fabric, own),
        }
        save_checkpoint(self.fabric, self.folder / name, payload)

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved.get("text", self.corpus.sha256) != self.corpus.sha256:
            raise ValueError(
                f"{self.folder / 'last.ckpt'} is of another text than {self.corpus.name} now is; "
                "bring that text back, or train anew in another folder"
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.progress = Progress(**{name: saved[name] for name in asdict(self.progress)})
        self.progress.finished = self._is_over()  # --epochs or --patience may have changed
        own = saved["processes"][self.fabric.global_rank]
        self.state = _to(own["state"], self.fabric.device)
        torch.set_rng_state(own["rng"][0])
        if torch.cuda.is_available() and len(own["rng"]) > 1:
            torch.cuda.set_rng_state(own["rng"][1])

    def _is_over(self) -> bool:
        patience, progress = self.config.patience, self.progress
        return progress.epoch > self.config.epochs or 0 < patience <= progress.since_best

    def _bar(self) -> Any:
        return tqdm(
            total=self.steps,
            initial=self.progress.step,
            desc=f"{self.label} epoch {self.progress.epoch}/{self.config.epochs}",
            disable=self.on_steps is not None or self.fabric.global_rank > 0,
            bar_format="{desc} {percentage:3.0f}%|{bar:12}| {elapsed}{postfix}",
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def _figures(self, nats: float) -> str:
        """Loss, perplexity, γ per layer and tokens per second, for the progress bar."""
        progress = self.progress
        spread = " ".join("-" if s is None else f"{s.mean():.3f}" for s in self.model.rnn.spread)
        row = progress.history[-1] if progress.step == 0 else None
        seconds = row["seconds"] if row else progress.seconds
        tokens = self.steps * self.config.unroll if row else progress.step * self.config.unroll
        rate = tokens * self.config.batch_size / max(seconds, 1e-9)
        return f"loss {nats:.5g} nats/token, ppl {_ppl(nats)}, γ {spread}, {rate:,.0f} tok/s"


def _ppl(nats: float) -> str:
    return f"{math.exp(nats):.1f}" if nats < 20 else f"e^{nats:.3g}"


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def _gathered(fabric: Fabric, own: Any) -> list[Any]:
    """What each process holds, in the order of their ranks."""
    if fabric.world_size == 1:
        return [own]
    everything: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everything, own)
    return everything


def _to(state: Any, device: torch.device) -> Any:
    if isinstance(state, (tuple, list)):
        return tuple(_to(part, device) for part in state)
    return None if state is None else state.to(device)
