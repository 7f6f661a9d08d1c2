"""One run in a process of its own: ``python -m noisin_pyro.experiments.worker FOLDER/job.json``.

The worker keeps the lock on its folder from its start to its end, and one beside the record, since
reproductions with the same results may have different folders of checkpoints. If the reproduction
that started it is killed, it finishes its run, and another reproduction waits for it. It writes its
progress to ``progress.json`` beside the job.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from noisin_pyro.atomic import describe_failure, replacing
from noisin_pyro.experiments.read_record import read_record
from noisin_pyro.training.interrupt import Interrupted, interrupting
from noisin_pyro.training.lease import BUSY, Held, holding

__all__ = ["BUSY", "LOCK", "PROGRESS", "lock_of", "main"]

LOCK, PROGRESS = "lock", "progress.json"
PROGRESS_EVERY = 0.5  # seconds between two writes of the progress


def lock_of(record: Path) -> Path:
    """The lock beside a record.

    Example:
        >>> lock_of(Path("results/additive-0.2.seed1.a94473a1.json")).name
        'additive-0.2.seed1.a94473a1.lock'
    """
    return record.with_suffix(".lock")


def main(job_file: str) -> int:
    """Carries out a job.

    Args:
        job_file: the file that describes the run, in the run's folder.

    Returns:
        The exit code: 0, ``BUSY`` if another worker has the run or has finished it, 128 + n after
        signal n, or 1 if a file cannot be written.
    """
    folder = Path(job_file).parent
    try:
        with interrupting(), holding(folder / LOCK):
            return _carry_out(Path(job_file), folder)
    except Held:
        return BUSY
    except Interrupted as interrupted:
        return interrupted.exit_code
    except OSError as error:  # such as a full disk; the parent shows the last line
        traceback.print_exc()
        print(describe_failure(error), file=sys.stderr)
        return 1


def _carry_out(job_file: Path, folder: Path) -> int:
    try:
        job: dict[str, Any] = json.loads(job_file.read_text(encoding="utf-8"))
    except FileNotFoundError:  # another worker removed the folder; taking the lock made it again
        shutil.rmtree(folder, ignore_errors=True)
        return BUSY
    record = Path(job["record"])
    record.parent.mkdir(parents=True, exist_ok=True)
    with holding(lock_of(record)):
        known = read_record(record)
        finished = known is not None and known["finished"]
        if not finished:
            _run(job, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return BUSY if finished else 0


def _run(job: dict[str, Any], folder: Path) -> None:
    # Importing torch takes seconds, during which the run should already be locked.
    from noisin_pyro.experiments.job import run

    written = 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal written
        if "epoch" in progress and time.monotonic() - written < PROGRESS_EVERY:
            return
        with replacing(folder / PROGRESS) as temporary:
            temporary.write_text(json.dumps(progress), encoding="utf-8")
        written = time.monotonic()

    run(job, folder, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
