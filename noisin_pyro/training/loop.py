"""The training loop: truncated backpropagation over streams of tokens, resumable at any step."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor

from noisin_pyro.infer.noisin_elbo import NoisinELBO
from noisin_pyro.infer.prior_guide import PriorGuide
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.sequence import detach_state
from noisin_pyro.text.batching import streams, window_count, windows
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.text.evaluation import evaluate
from noisin_pyro.training.build import averaged_weights, build_optimizer
from noisin_pyro.training.checkpoint import (
    Damaged,
    check_origin,
    load_checkpoint,
    load_optimizer,
    load_weights,
    piece,
    read_progress,
    save_checkpoint,
)
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.interrupt import Interrupted, Interruptible
from noisin_pyro.training.out import BEST, LAST, PREVIOUS
from noisin_pyro.training.processes import gather, in_first_process, largest
from noisin_pyro.training.progress import OnSteps, Progress, Status
from noisin_pyro.training.random_state import random_state, set_random_state
from noisin_pyro.training.schedule import Schedule

__all__ = ["Trainer"]

CHECK_EVERY = 20  # steps between two reads of the losses, each of which waits for the GPU


@dataclass(eq=False)
class Trainer:
    """Trains one language model, and keeps ``last.ckpt`` and ``best.ckpt`` in its folder.

    Args:
        fabric: a launched Fabric; each of its processes reads its own streams.
        config: the run.
        model: the model, on the CPU, built with Pyro's ``module_local_params`` on (otherwise the
            global param store would contain its parameters too).
        corpus: the corpus.
        folder: the folder for checkpoints.
        label: the name of the model in progress, errors and checkpoints.
        on_epoch: called with the progress after each epoch and once when resuming.
        on_steps: called in the first process with the status at the start of each epoch, every few
            steps, and at its end.
    """

    fabric: Fabric
    config: TrainConfig
    model: LanguageModel
    corpus: Corpus
    folder: Path
    label: str
    on_epoch: Callable[[Progress], None] = lambda progress: None
    on_steps: OnSteps = lambda status: None

    def __post_init__(self) -> None:
        share = self.config.batch_size // self.fabric.world_size
        first = self.fabric.global_rank * share
        stream = streams(self.corpus.train, self.config.batch_size)[:, first : first + share]
        self.stream = stream.to(self.fabric.device)
        self.steps = window_count(self.stream, self.config.unroll)
        objective = NoisinELBO()(self.model, PriorGuide(self.model))
        optimizer = build_optimizer(self.config, objective, self.steps)
        self.objective, self.optimizer = self.fabric.setup(objective, optimizer)
        self.objective.mark_forward_method("with_state")
        self.progress = Progress()
        self.state: Any = None
        self.stop = Interruptible()
        self.sound = True  # False if last.ckpt was found damaged and is to be replaced

    def fit(self) -> Progress:
        """Trains to the last epoch or until patience runs out; resumes from ``last.ckpt``.

        Raises:
            Interrupted: if a signal came; ``last.ckpt`` holds the step it came at.
            ValueError: if ``last.ckpt`` and ``previous.ckpt`` are damaged, or of another run.
            FloatingPointError: if a loss or the gradient became NaN or infinite.
            OSError: if a checkpoint cannot be written; those before it stay.
        """
        torch.manual_seed(self.config.seed + 1000 * self.fabric.global_rank)
        if self._resume():
            self._complete_best()
            self.on_epoch(self.progress)
        schedule = Schedule.parse(self.config.schedule)
        with self.stop.deferring(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered")  # NaN, for which `_add_up` raises
            while not self.progress.finished:
                self._epoch()
                self._end_epoch(schedule)
                self._interrupt(*largest(self.fabric, self.stop.requested))
        return self.progress

    def load_best(self) -> None:
        """Gives the model the weights of the best epoch (for ASGD, their average)."""
        path = self.folder / BEST
        saved = load_checkpoint(path)
        check_origin(path, saved, self.config, self.label, self.corpus.sha256)
        with piece(path, "model"):
            load_weights(self.model, saved["averaged"] or saved["model"])

    def _epoch(self) -> None:
        """Trains from the current step to the end of the epoch, with checkpoints in between."""
        progress, config = self.progress, self.config
        self.model.train()
        self._report()
        clock = saved = time.monotonic()
        losses: list[Tensor] = []
        for x, y in windows(self.stream, config.unroll, progress.step):
            losses.append(self._step(x, y))
            progress.step += 1
            progress.tokens += y.numel()
            now = time.monotonic()
            due, signal = int(now - saved >= config.checkpoint_seconds), self.stop.requested
            at_once = (due or signal) and self.fabric.world_size == 1
            if len(losses) < CHECK_EVERY and not at_once:
                continue
            due, signal = largest(self.fabric, due, signal)  # all save or stop together
            self._add_up(losses)
            losses.clear()
            progress.seconds, clock = progress.seconds + now - clock, now
            self._report()
            if due or signal:
                self._save(LAST)
                saved = time.monotonic()
            self._interrupt(signal)
        self._add_up(losses)
        progress.seconds += time.monotonic() - clock

    def _interrupt(self, signal: int) -> None:
        if signal:
            raise Interrupted(signal)

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """Updates the parameters; returns the summed loss in nats and the gradient's norm."""
        with self.fabric.autocast():  # Fabric itself does so for ``forward`` only
            total, state = self.objective.with_state(x, y, self.state)
        self.fabric.backward(total / y.numel())
        norm = self.fabric.clip_gradients(
            self.objective,
            self.optimizer,
            max_norm=self.config.clip_norm or math.inf,
            error_if_nonfinite=False,
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state = detach_state(state)
        assert norm is not None
        return torch.stack([total.detach(), norm])

    def _add_up(self, losses: list[Tensor]) -> None:
        """Adds losses to the progress; raises if one, or its gradient's norm, is not finite."""
        rows = torch.stack(losses).tolist() if losses else []
        first = self.progress.step - len(rows) + 1
        for step, (nats, norm) in enumerate(rows, first):
            if not (math.isfinite(nats) and math.isfinite(norm)):
                name, value = ("gradient", norm) if math.isfinite(nats) else ("loss", nats)
                self._diverged(name, value, f"at step {step}")
            self.progress.nats += nats

    def _diverged(self, name: str, value: float, where: str) -> NoReturn:
        last = self.folder / LAST
        kept = f"{last} is from before it" if last.exists() else "nothing was saved yet"
        raise FloatingPointError(
            f"the {name} became {value} in epoch {self.progress.epoch} {where} of {self.label}; "
            f"{kept}, go on with --resume true and a lower learning_rate or clip_norm"
        )

    def _end_epoch(self, schedule: Schedule) -> None:
        """Validates, records the epoch, sets the next learning rate, and saves checkpoints."""
        progress, config = self.progress, self.config
        nats, tokens = map(sum, zip(*gather(self.fabric, (progress.nats, progress.tokens))))
        with averaged_weights(self.optimizer.optimizer):
            valid = evaluate(self.model, self.corpus.valid, unroll=config.unroll).nats
        # All processes decide by one number, whatever its rounding.
        valid = gather(self.fabric, valid)[0]
        if not math.isfinite(valid):  # the last step may have broken the weights
            self._diverged("validation loss", valid, "at its end")
        rate = self.optimizer.param_groups[0]["lr"]
        progress.history.append(
            {
                "epoch": progress.epoch,
                "train": nats / tokens,
                "valid": valid,
                "spread": self._spread(),
                "learning_rate": rate,
                "seconds": progress.seconds,
            }
        )
        self._report(nats / tokens, valid)
        worsened = not valid < (progress.history[-2]["valid"] if progress.epoch > 1 else math.inf)
        self._set_rate(rate * schedule.factor(progress.epoch, worsened))
        better = valid < progress.best
        progress.best = min(progress.best, valid)
        progress.since_best = 0 if better else progress.since_best + 1
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.finished = self._is_over()
        progress.nats, progress.tokens, progress.seconds, self.state = 0.0, 0, 0.0, None
        self._save(LAST)
        if better:  # after LAST, so that best.ckpt is never of an epoch that a resume trains anew
            self._save(BEST)
        self.on_epoch(progress)

    def _is_over(self) -> bool:
        patience, progress = self.config.patience, self.progress
        return progress.epoch > self.config.epochs or 0 < patience <= progress.since_best

    def _spread(self) -> list[float | None]:
        """γ of each layer, averaged over its units if it has one per unit."""
        return [None if s is None else s.detach().mean().item() for s in self.model.rnn.spread]

    def _report(self, nats: float | None = None, valid: float | None = None) -> None:
        """Calls ``on_steps``, with this process's mean loss of the epoch so far by default."""
        if self.fabric.global_rank:
            return
        progress = self.progress
        if nats is None and progress.tokens:
            nats = progress.nats / progress.tokens
        tokens = progress.tokens * self.fabric.world_size
        self.on_steps(
            Status(
                label=self.label,
                epoch=progress.epoch,
                epochs=self.config.epochs,
                step=progress.step,
                steps=self.steps,
                nats=nats,
                valid_nats=valid,
                spread=self._spread(),
                tokens_per_second=tokens / max(progress.seconds, 1e-9),
            )
        )

    def _save(self, name: str) -> None:
        averaged = None
        if self.config.optimizer == "asgd":
            with averaged_weights(self.optimizer.optimizer):
                averaged = {k: v.clone() for k, v in self.model.state_dict().items()}
        process = {"state": self.state, "rng": random_state(self.fabric.device)}
        payload = {
            **asdict(self.progress),
            "config": self.config.to_dict(),
            "label": self.label,
            "text": self.corpus.sha256,
            "model": self.model.state_dict(),
            "averaged": averaged,
            "optimizer": self.optimizer.state_dict(),
            "processes": gather(self.fabric, process),
        }

        def write() -> None:
            # A damaged last.ckpt is replaced, or it would take the place of a sound previous.ckpt.
            keep = self.folder / PREVIOUS if name == LAST and self.sound else None
            save_checkpoint(self.folder / name, payload, keep)

        with self.stop.saving():
            in_first_process(self.fabric, write)
        self.sound = self.sound or name == LAST

    def _resume(self) -> bool:
        """Restores ``last.ckpt``, or ``previous.ckpt`` if that is damaged.

        Returns:
            Whether there was a checkpoint to restore.
        """
        damage: list[Damaged] = []
        for path in (self.folder / LAST, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                self._restore(path)
            except Damaged as error:
                damage.append(error)
                self.sound = False
                continue
            if damage and self.fabric.global_rank == 0:
                print(f"noisin: {damage[0]}; went on from {path}", file=sys.stderr)
            return True
        if damage:
            raise damage[0]
        return False

    def _complete_best(self) -> None:
        """Writes ``best.ckpt`` if the epoch that ``last.ckpt`` ends with is to be in it.

        A kill, or a full disk, may have come between the two.
        """
        progress, path = self.progress, self.folder / BEST
        if progress.step or progress.since_best or not progress.history:
            return
        try:
            written = load_checkpoint(path)["epoch"] == progress.epoch
        except Damaged:
            written = False
        if not written:
            self._save(BEST)

    def _restore(self, path: Path) -> None:
        saved = load_checkpoint(path)
        changes = check_origin(path, saved, self.config, self.label, self.corpus.sha256)
        with piece(path, "progress"):
            progress = read_progress(saved, self.steps)
        with piece(path, "model"):
            load_weights(self.model, saved["model"])
        with piece(path, "optimizer"):
            load_optimizer(self.optimizer, saved["optimizer"])
        with piece(path, "hidden state"):
            process = saved["processes"][self.fabric.global_rank]
            self.state = self._state_from(process["state"])
        with piece(path, "random state"):
            set_random_state(self.fabric.device, process["rng"])
        self.progress = progress
        self.progress.finished = self._is_over()  # --epochs or --patience may have changed
        if changes and not self.progress.finished:
            self.progress.changes += [{"epoch": progress.epoch, "step": progress.step, **changes}]
        if "learning_rate" in changes:
            self._set_rate(self.config.learning_rate)

    def _set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        optimizer = self.optimizer.optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate
        for state in optimizer.state.values():
            if "eta" in state:  # by which ASGD steps; it derives it from lr after each step
                state["eta"].fill_(rate)

    def _state_from(self, state: Any) -> Any:
        """The hidden state of a checkpoint, on this process's device.

        Raises:
            ValueError: if a part of it is not finite, or not of shape (layers, streams,
                hidden_size), or there are more or fewer parts than the cell has.
        """
        if state is None:
            return None
        parts = state if isinstance(state, tuple) else (state,)
        shape = (self.config.layers, self.stream.shape[1], self.config.hidden_size)
        if len(parts) != len(self.model.rnn.cell.state_sizes(1)) or any(
            part.shape != shape or not part.isfinite().all() for part in parts
        ):
            raise ValueError(f"it must be finite, with shape {shape}")
        return self.fabric.to_device(state)
