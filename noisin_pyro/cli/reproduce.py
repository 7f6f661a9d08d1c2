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
    rows: str | None = None,
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
    """Train the models of the paper's tables and figures, and render them.

    Every model without a finished record is trained, or its interrupted run continued; then tables
    and pictures are made from the records. Choices are made on the validation split.

    Args:
        experiment: table1, table2, table3, figure2, icml (tables 3 and 4 of the version at ICML),
            spread (a learned γ by epoch), samples (averaging at test time), regularisers (noise,
            dropout, zoneout and others) or linear (minGRU and minLSTM).
        rows: the rows to train, separated by commas, such as 1-tanh-none,1-tanh-noisin of table2;
            all if omitted. The tables of their corpora show every row that has a record.
        jobs: number of trainings to run at the same time.
        results: the folder for the records, and for the tables and pictures made from them.
        work: the folder for checkpoints, which are removed when a run has its record.
        render: train nothing, whatever jobs and cluster say; make tables and pictures from the
            records that there are.
        quiet: show no progress.
        cluster: submit each training as a job by submitit, to slurm or on this machine (local).
        partition: Slurm's partition.
        hours: time limit of a job; a job that reaches it is queued again and goes on.
        cpus: CPU cores of a job.
        gpus: GPUs of a job.
        **options: the fields of :class:`~noisin_pyro.experiments.recipe.Options`.

    Raises:
        ValueError: if an option, the corpus or a record does not fit.
        Interrupted: after a signal; the same command continues.
        SystemExit: with 1 if a training failed, after the others have ended.
    """
    from pathlib import Path

    names = [row.strip() for row in (rows or "").split(",") if row.strip()]
    if rows is not None and not names:
        raise ValueError(f"rows names no row, got {rows!r}; leave it out to train all")
    from noisin_pyro.experiments.cluster import Cluster
    from noisin_pyro.experiments.recipe import Options
    from noisin_pyro.text.sources import check_source

    chosen = Options(**options)
    if chosen.corpus is not None and not render:
        check_source(chosen.corpus)
    from noisin_pyro.experiments.reproduce import reproduce as run

    of_jobs = {"partition": partition, "hours": hours, "cpus": cpus, "gpus": gpus}
    for name, value in of_jobs.items():
        if cluster is None and value != getattr(Cluster, name):  # its default
            raise ValueError(
                f"{name} is of the jobs of a cluster, got {value} without one; give "
                "--cluster slurm too, or leave it out"
            )
    where = None
    if cluster is not None:
        where = Cluster(cluster, Path(work) / "cluster", partition, hours, cpus, gpus)
    try:
        text, failures = run(
            experiment,
            chosen,
            names,
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
