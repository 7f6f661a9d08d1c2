"""Trains the runs without a finished record, several at once, each in a process of its own."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from noisin_pyro.experiments.cluster import Cluster, ClusterWorker
from noisin_pyro.experiments.preflight import refuse_early
from noisin_pyro.experiments.process import Worker
from noisin_pyro.experiments.progress import Display, count
from noisin_pyro.experiments.recipe import Options, Recipe
from noisin_pyro.experiments.store import Run, due, planned
from noisin_pyro.experiments.worker import LOCK
from noisin_pyro.training.interrupt import Interrupted, Interruptible
from noisin_pyro.training.lease import Lease

__all__ = ["Failure", "run_all"]

POLL = 0.2  # seconds between two looks at the workers
RETRY = 2.0  # seconds between attempts at a run that another reproduction is training


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record, or a row whose records cannot be read, and why."""

    run: Run | Recipe
    reason: str


def run_all(
    rows: Sequence[Recipe],
    options: Options,
    *,
    results: Path = Path("results/reproduce"),
    work: Path = Path("runs/reproduce"),
    jobs: int = 1,
    cluster: Cluster | None = None,
    title: str = "",
    quiet: bool = False,
) -> list[Failure]:
    """Trains until every run of the rows has a finished record.

    The entries of a row's grid come first, then further seeds of the entry with the lowest
    validation perplexity. An interrupted run resumes from its checkpoint. If another reproduction
    is training a run, this one waits until the run has its record or is free.

    Args:
        rows: the rows to run.
        options: the options of the reproduction.
        results: the folder for records.
        work: the folder for checkpoints and logs, which are removed when a run has its record.
        jobs: number of trainings at a time, which share the cores.
        cluster: submit the trainings to this cluster; start processes on this machine if None.
        title: the text that the progress bar begins with.
        quiet: show no progress.

    Returns:
        The runs that failed. A failure does not stop the other runs.

    Raises:
        ValueError: if ``jobs`` is below 1, a recipe does not fit, or no run could succeed.
        ImportError: if there is a cluster, but no submitit.
        Interrupted: after a signal such as Ctrl-C's, when all workers have saved a checkpoint.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if cluster is not None:
        cluster.executor()
    remote = cluster is not None and cluster.name != "local"
    refuse_early(rows, options, results, work, check_device=not remote)
    failures: list[Failure] = []
    ended: set[Path] = set()
    active: dict[Path, Worker] = {}
    show, stop = Display(title, jobs, quiet), Interruptible()
    with stop.deferring():  # else a signal could leave behind a worker that has just started
        try:
            while True:
                done = ended | set(active)
                waiting = [run for run in due(rows, options, results) if run.path not in done]
                elsewhere = _start(waiting, active, work, jobs, cluster)
                tally = count(rows, options, results)
                show(tally, list(active.values()), elsewhere)
                if not (active or waiting):
                    _clear(rows, options, results, work, cluster)
                    return failures
                workers = list(active.values())
                until = time.monotonic() + (RETRY if elsewhere else math.inf)
                while time.monotonic() < until and _is_quiet(workers, stop):
                    time.sleep(POLL)
                    show(tally, workers, elsewhere)
                if stop.requested:
                    raise Interrupted(stop.requested)
                for worker in _collect(active):
                    ended.add(worker.run.path)
                    failures.append(Failure(worker.run, worker.last_words()))
        finally:
            for worker in active.values():
                worker.interrupt()
            for worker in active.values():
                worker.join()
            show.close()


def _is_quiet(workers: Sequence[Worker], stop: Interruptible) -> bool:
    """Whether all workers run, and no signal has come."""
    return not stop.requested and all(worker.running for worker in workers)


def _start(
    waiting: Sequence[Run],
    active: dict[Path, Worker],
    work: Path,
    jobs: int,
    cluster: Cluster | None,
) -> int:
    """Starts up to ``jobs`` workers; returns how many runs another reproduction is training."""
    elsewhere = 0
    for run in waiting:
        if len(active) == jobs:
            break
        worker = _prepare(run, work / run.place, jobs, cluster)
        if worker is None:
            elsewhere += 1
        else:
            active[run.path] = worker.start()
    return elsewhere


def _prepare(run: Run, folder: Path, jobs: int, cluster: Cluster | None = None) -> Worker | None:
    """A worker for a run; None if another one has the run's locks or has just finished it.

    The job file is written under the locks, so that no other worker removes the folder meanwhile.
    Then they are released for the worker to take. If another reproduction's worker is faster, this
    one ends at once.
    """
    taken: list[Lease] = []
    try:
        for lock in (folder / LOCK, run.lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            if not _lease(lock).take():
                return None
            taken.append(_lease(lock))
        if not run.finished:
            if cluster is None:
                return Worker(run, folder, jobs)
            return ClusterWorker(run, folder, jobs, cluster)
        shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:  # a worker of other results has removed the folder just now
        pass
    finally:
        for lease in reversed(taken):
            lease.give_back()
    return None


def _clear(
    rows: Sequence[Recipe], options: Options, results: Path, work: Path, cluster: Cluster | None
) -> None:
    """Removes what is left of finished runs: logs of jobs, and folders of killed workers."""
    for run in [run for recipe in rows for run in planned(recipe, options, results)]:
        if not run.finished:
            continue
        if cluster is not None:
            shutil.rmtree(cluster.folder / run.place, ignore_errors=True)
        if (work / run.place).exists() or run.lock.exists():
            _prepare(run, work / run.place, jobs=1)


@cache
def _lease(path: Path) -> Lease:
    """The same object at every call, which remembers since when the lock's owner is silent."""
    return Lease(path)


def _collect(active: dict[Path, Worker]) -> list[Worker]:
    """Removes the workers that have ended from ``active``; returns those that failed."""
    ended = [active.pop(path) for path, worker in list(active.items()) if not worker.running]
    for worker in ended:
        worker.join()
    return [worker for worker in ended if worker.failed]
