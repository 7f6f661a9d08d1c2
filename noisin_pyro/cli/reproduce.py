"""``noisin reproduce``."""

from __future__ import annotations

from typing import Any, Literal

from noisin_pyro.cli.output import say, warn

__all__ = ["reproduce"]


def reproduce(
    experiment: Literal[
        "table1",
        "table2",
        "table3",
        "figure2",
        "icml",
        "spread",
        "samples",
        "regularisers",
        "linear",
    ],
    rows: str = "",
    jobs: int = 1,
    results: str = "results/reproduce",
    work: str = "runs/reproduce",
    render: bool = False,
    quiet: bool = False,
    cluster: Literal["local", "slurm"] | None = None,
    partition: str | None = None,
    hours: float = 24.0,
    cpus: int = 1,
    gpus: int = 0,
    **options: Any,
) -> None:
    """Run and render the paper's tables and figures.

    Args:
        experiment: table1, table2, table3, figure2, icml (tables 3 and 4 of the paper of 2018),
            spread (γ by epoch), samples (averaging), regularisers (what else one would
            use) or linear (recurrences without a tanh).
        rows: some rows of it, separated by commas; all if omitted. Their texts are rendered whole.
        jobs: trainings at a time.
        results: where records and what is rendered from them go.
        work: where checkpoints go until a run has its record.
        render: only render what the records hold.
        quiet: show no progress.
        cluster: send each training to Slurm as a job, or to submitit on this machine.
        partition: Slurm's partition.
        hours: the limit of a job, which is put in the queue again when it reaches it.
        cpus: cores of a job.
        gpus: GPUs of a job.
    """
    from pathlib import Path

    from noisin_pyro.experiments.cluster import Cluster
    from noisin_pyro.experiments.recipe import Options
    from noisin_pyro.text.sources import check_source

    chosen = Options(**options)
    if chosen.corpus is not None and not render:
        check_source(chosen.corpus)
    from noisin_pyro.experiments.reproduce import reproduce as run

    where = None
    if cluster is not None:
        where = Cluster(cluster, Path(work) / "cluster", partition, hours, cpus, gpus)
    try:
        text, failures = run(
            experiment,
            chosen,
            [row.strip() for row in rows.split(",") if row.strip()],
            results=Path(results),
            work=Path(work),
            jobs=jobs,
            cluster=where,
            train=not render,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        warn("stopped, nothing is lost; the same command goes on")
        raise
    say(text)
    for failure in failures:
        warn(f"{failure.run.name} failed: {failure.reason}")
    if failures:
        raise SystemExit(1)
