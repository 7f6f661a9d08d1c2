"""Training on several hosts, whose processes torchrun or srun starts with one command."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from noisin_pyro.atomic import describe_failure
from noisin_pyro.training.config import TrainConfig

__all__ = ["check_launcher", "in_first_folder", "is_first"]


def is_first(config: TrainConfig) -> bool:
    """Whether this is the process that prints. On a single host only that process calls this."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return config.nodes == 1 or rank == "0"


def check_launcher(config: TrainConfig) -> None:
    """Refuses several hosts unless torchrun or srun has started the processes.

    Raises:
        ValueError: if neither has, or their number is not ``nodes`` times ``devices``.
    """
    if config.nodes == 1:
        return
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    there = os.environ.get("WORLD_SIZE" if torchrun else "SLURM_NTASKS")
    wanted = config.nodes * config.devices
    if there is None:
        raise ValueError(
            f"nodes {config.nodes} needs torchrun or srun to start a process for each device, got "
            f"neither; see torchrun --nnodes {config.nodes} --nproc-per-node {config.devices}"
        )
    if there != str(wanted):
        raise ValueError(
            f"nodes {config.nodes} and devices {config.devices} are {wanted} processes, got "
            f"{there}; give {'torchrun' if torchrun else 'srun'} as many"
        )


def in_first_folder(
    fabric: Any, folder: AbstractContextManager[None], run: Callable[[Any], Any]
) -> Any:
    """Runs in every process, while the first one has opened the run's folder.

    Args:
        fabric: a launched Fabric.
        folder: the context that the first process enters before any process runs.
        run: the function to run in every process; it is called with ``fabric``.

    Raises:
        ValueError: in every process, if the first cannot enter the folder, or write to it.
    """
    import torch.distributed

    with ExitStack() as stack:
        refusal: ValueError | None = None
        if fabric.global_rank == 0:
            try:
                stack.enter_context(folder)
            except ValueError as error:
                refusal = ValueError(str(error))
            except OSError as error:
                refusal = ValueError(describe_failure(error))
        refusal = fabric.broadcast(refusal)
        if refusal is not None:
            torch.distributed.destroy_process_group()  # as after a training, before Python exits
            raise refusal
        return run(fabric)
