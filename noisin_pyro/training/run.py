"""A whole run: a model, its deterministic twin, and the folder with their results."""

from __future__ import annotations

import json
import multiprocessing
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch.multiprocessing.spawn import ProcessExitedException

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Corpus
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.fit import fit_model, load_checked, make_fabric, measure
from noisin_pyro.training.folder import open_folder, write_model, write_results
from noisin_pyro.training.hosts import in_first_folder
from noisin_pyro.training.infinities import with_infinities
from noisin_pyro.training.interrupt import Interrupted, Interruptible, interrupting
from noisin_pyro.training.out import check_folder
from noisin_pyro.training.processes import in_first_process
from noisin_pyro.training.progress import Progress
from noisin_pyro.training.record import describe_training, new_record, results_before
from noisin_pyro.training.scalars import AddScalar, log_epoch, tensorboard_log

__all__ = ["SAMPLES", "models", "train"]

SAMPLES = 16  # noisy RNNs averaged over at test time


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains the model of a configuration and its deterministic twin, and writes the folder.

    Torch's random state is left as it was.

    Args:
        config: the run.

    Returns:
        The record, as in ``record.json``.

    Raises:
        ValueError: if the corpus, the noise, the folder or a file in it does not fit.
        FloatingPointError: if the loss became NaN or infinite.
        Interrupted: if a signal came, such as that of Ctrl-C.
        OSError: if a file cannot be written; what was there stays.
    """
    if config.nodes == 1:  # on several hosts `in_first_folder` does it for all processes
        check_folder(config)
    corpus = load_checked(config)
    fabric = make_fabric(config)
    # Fabric inspects the arguments of the function it launches, but not those of a partial.
    run = partial(_run_in_process, config=config, corpus=corpus)
    outcome: dict[str, Any] | BaseException | None
    label = next(iter(models(config, Path(config.out))))
    if config.nodes > 1:
        folder = open_folder(config, corpus, label)
        outcome = fabric.launch(partial(in_first_folder, folder=folder, run=run))
    else:
        with open_folder(config, corpus, label):
            outcome = _launch(fabric, run, config) if config.devices > 1 else fabric.launch(run)
    if isinstance(outcome, BaseException):
        raise outcome
    if outcome is not None:
        return outcome
    text = Path(config.out, "record.json").read_bytes()
    record: dict[str, Any] = json.loads(text, object_hook=with_infinities)
    return record


def _launch(fabric: Fabric, run: Any, config: TrainConfig) -> BaseException | None:
    """Starts several processes on this machine, and passes signals on to them."""

    def pass_on(number: int) -> None:
        processes = multiprocessing.active_children()
        if not processes:
            raise Interrupted(number)
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to every process
            for process in processes:
                process.terminate()

    stop = Interruptible(pass_on)
    with stop.deferring():
        try:
            error: BaseException | None = fabric.launch(partial(_without_record, run=run))
            return error
        except ProcessExitedException as end:
            if stop.requested:  # the signal came before the process could handle it
                return Interrupted(stop.requested)
            return ValueError(
                f"a process of the training has ended ({end}); go on with --resume true in "
                f"{config.out!r}"
            )


def _without_record(fabric: Fabric, run: Any) -> BaseException | None:
    """Runs in a spawned process; returns the exception, if any, but not the record.

    The parent reads the record from its file. It reads the pipe from a spawned process only after
    the process has ended, and a larger result than 64 kB would block the process for ever.

    On Linux torch has SIGINT sent to the process when its parent is killed, and the kernel sends
    one for each thread of the parent. A second SIGINT would interrupt at once, with nothing saved,
    so SIGTERM, which may come more than once, is sent instead.
    """
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)  # type: ignore[attr-defined]
    outcome = run(fabric)
    return outcome if isinstance(outcome, BaseException) else None


def _run_in_process(fabric: Fabric, **options: Any) -> dict[str, Any] | BaseException:
    """Runs, and returns exceptions; spawned processes would only print them.

    A signal raises :class:`Interrupted` in a spawned process too.

    The process group is ended here. Otherwise a thread of gloo might drop the last reference to a
    tensor while Python exits, which aborts the process.
    """
    try:
        with interrupting():
            return _run(fabric, **options)
    except (Interrupted, ValueError, FloatingPointError, OSError) as error:
        if torch.distributed.is_initialized():
            error.__traceback__ = None  # its frames refer to the process group
        return error
    finally:
        if torch.distributed.is_initialized():
            _end_process_group()


def _end_process_group() -> None:
    """Ends the process group and gloo's threads.

    A thread of gloo may still have to drop a tensor, for which it needs the GIL. In torch 2.6 the
    destructor of a process group joins these threads without releasing the GIL, which is a
    deadlock. That of the backend releases it first, so the backend's reference is dropped last.
    """
    group = torch.distributed.group.WORLD
    gloo = torch.distributed.get_backend() == "gloo"
    backend = group._get_backend(torch.device("cpu")) if group and gloo else None
    del group
    torch.distributed.destroy_process_group()
    del backend


def _run(fabric: Fabric, config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Trains and measures every model of the run, in each of its processes."""
    folder = Path(config.out)
    train_tokens = corpus.train[: max(len(corpus.test), 2 * config.batch_size)]
    splits = {"train": train_tokens, "valid": corpus.valid, "test": corpus.test}
    record = new_record(config, corpus, train_tokens_evaluated=len(train_tokens), models={})
    before = results_before(folder / "record.json", record)
    logged = config.tensorboard and fabric.global_rank == 0
    with tensorboard_log(folder / "tensorboard", logged) as log:
        for label, (model_config, place) in models(config, folder).items():
            place.mkdir(exist_ok=True)
            after_epoch = partial(_after_epoch, fabric, folder, record, label, corpus, log)
            model = fit_model(fabric, model_config, corpus, place, label, on_epoch=after_epoch)
            noisy = not model_config.deterministic
            trained, same = record["models"][label], before.get(label)
            if same is None or same["history"] != trained["history"]:
                same = {"final": _measure(model, splits, config.seed, noisy)}
            trained["final"] = same["final"]

            def write(place: Path = place, model: LanguageModel = model) -> None:
                write_model(place, model, corpus.vocabulary)
                write_results(folder, record)

            in_first_process(fabric, write)
    return record


def _measure(model: LanguageModel, splits: Any, seed: int, noisy: bool) -> dict[str, Any]:
    """The perplexities of a trained model, without noise and averaged over noisy RNNs."""
    return {
        "mean_path": measure(model, splits, 0, seed),
        "averaged": measure(model, splits, SAMPLES, seed) if noisy else None,
    }


def models(config: TrainConfig, folder: Path) -> dict[str, tuple[TrainConfig, Path]]:
    """The models of a run by their labels, each with its configuration and folder."""
    twin = replace(config, noise="none", learn_spread=False, variational_dropout=0.0)
    if config.deterministic:
        return {"deterministic": (twin, folder)}
    label = "dropout" if config.variational_dropout else "noisin"
    return {label: (config, folder), "deterministic": (twin, folder / "deterministic")}


def _after_epoch(
    fabric: Fabric,
    folder: Path,
    record: dict[str, Any],
    label: str,
    corpus: Corpus,
    log: AddScalar | None,
    progress: Progress,
) -> None:
    """Brings the record and the logs up to date."""
    model = describe_training(progress, corpus, record["config"]["batch_size"])
    record["models"][label] = model
    if model["history"]:
        in_first_process(fabric, partial(write_results, folder, record))
        if log is not None:
            log_epoch(log, label, progress.history[-1])
