"""Submits runs to a cluster with submitit; each job runs the same worker as a local process."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisin_pyro.experiments.process import GRACE, Worker
from noisin_pyro.experiments.store import Run
from noisin_pyro.experiments.worker import BUSY

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

__all__ = ["Cluster", "ClusterWorker"]

PREEMPTION = "SIGUSR2"  # Slurm sends it 90 seconds before a job's limit, as submitit asks it to
POLL = 0.2  # seconds between two looks at a job
REQUEUES = 1000  # how many times a job may reach its limit and be queued again


@dataclass(frozen=True)
class Cluster:
    """The cluster that jobs are submitted to.

    Args:
        name: ``slurm``, or ``local`` for submitit's jobs on this machine.
        folder: where submitit keeps jobs and logs, in a folder for each run, which is removed when
            the run has its record; on a file system that the machines share.
        partition: Slurm's partition; its default one if None.
        hours: time limit of a job, in hours; a job that reaches it is queued again.
        cpus: CPU cores of a job.
        gpus: GPUs of a job.

    Raises:
        ValueError: if a number is out of range.
    """

    name: Literal["local", "slurm"]
    folder: Path
    partition: str | None = None
    hours: float = 24.0
    cpus: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.hours < 10_000:
            raise ValueError(f"hours must lie between 0 and 10,000, got {self.hours}")
        if self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, got {self.cpus}")
        if self.gpus < 0:
            raise ValueError(f"gpus must be at least 0, got {self.gpus}")

    def executor(self, place: Path = Path()) -> AutoExecutor:
        """Submitit's executor with these settings.

        Args:
            place: the path of a run's jobs and logs within the folder.

        Raises:
            ImportError: if submitit is not installed.
            ValueError: if there is no such cluster here.
        """
        try:
            from submitit import AutoExecutor
        except ImportError:
            raise ImportError(
                'cluster needs the extra cluster; run pip install "noisin-pyro[cluster]"'
            ) from None
        try:
            options = {"slurm_max_num_timeout": REQUEUES} if self.name == "slurm" else {}
            executor = AutoExecutor(self.folder / place, cluster=self.name, **options)
        except RuntimeError as error:
            raise ValueError(
                f"cluster {self.name} is not here ({error}); call noisin where sbatch and srun are"
            ) from None
        executor.update_parameters(
            name="noisin",
            timeout_min=max(1, round(60 * self.hours)),
            cpus_per_task=self.cpus,
            gpus_per_node=self.gpus,
            **({"slurm_partition": self.partition} if self.partition else {}),
        )
        return executor


class RunJob:
    """The function of a job: runs a worker, and has the job queued again at its time limit.

    Args:
        job_file: the file that describes the run.
        cores: number of threads to use.
    """

    def __init__(self, job_file: str, cores: int) -> None:
        self.job_file, self.cores = job_file, cores

    def __call__(self) -> int:
        os.environ.setdefault("OMP_NUM_THREADS", str(self.cores))
        from noisin_pyro.experiments.worker import main

        code = main(self.job_file)
        if code == 128 + getattr(signal, PREEMPTION):
            # The checkpoint is saved. Submitit's handler, which the worker's had replaced, queues
            # the job again and exits.
            signal.raise_signal(getattr(signal, PREEMPTION))
        return code

    def checkpoint(self) -> Any:
        """Called by submitit at the time limit: the job to queue again, which is the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(RunJob(self.job_file, self.cores))


class ClusterWorker(Worker):
    """A job that carries out a run.

    Args:
        run, folder, jobs: as of :class:`~noisin_pyro.experiments.process.Worker`.
        cluster: the cluster to submit the job to.
    """

    job: Job[int]

    def __init__(self, run: Run, folder: Path, jobs: int, cluster: Cluster) -> None:
        super().__init__(run, folder, jobs)
        self._cluster = cluster
        self._output.close()  # submitit has logs of its own

    def start(self) -> ClusterWorker:
        cores = self._cores if self._cluster.name == "local" else self._cluster.cpus
        with _ctrl_c_ignored():
            job_file = str((self.folder / "job.json").resolve())
            self.job = self._cluster.executor(self.run.place).submit(RunJob(job_file, cores))
        return self

    @property
    def running(self) -> bool:
        return not self.job.done()

    @property
    def failed(self) -> bool:
        """Whether it ended without a finished record, and not by a signal.

        A scheduler may end a job by a signal at any time. Its run is then submitted again.
        """
        return not self.run.finished and self._code() != BUSY and self._code() < 128

    @property
    def stage(self) -> str:
        return super().stage if self.progress else "queued"

    def interrupt(self) -> None:
        """Asks it to save a checkpoint and to end; a job still in the queue is cancelled."""
        if not self.running:
            return
        if self._cluster.name == "local":  # submitit's own cancel kills after a second
            os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)

    def join(self) -> None:
        """Waits up to ``GRACE`` seconds for its end; removes the logs of a finished run."""
        until = time.monotonic() + GRACE
        while self.running and time.monotonic() < until:
            time.sleep(POLL)
        if self.run.finished:
            shutil.rmtree(self._cluster.folder / self.run.place, ignore_errors=True)

    def last_words(self) -> str:
        """The last line of what it printed on stderr, and where the rest is."""
        path = self.job.paths.stderr
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
        if not self.job.paths.result_pickle.exists():
            return f"the job {self.job.job_id} was killed ({path})"
        return f"{text.splitlines()[-1].strip()} ({path})" if text else f"no reason given ({path})"

    def _code(self) -> int:
        """The worker's exit code; 1 if it was killed or raised an error."""
        if not self.job.paths.result_pickle.exists():
            return 1
        return 1 if self.job.exception() else self.job.result()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C, which a terminal sends to its whole group.

    Otherwise submitit's local controller would kill its job one second later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
