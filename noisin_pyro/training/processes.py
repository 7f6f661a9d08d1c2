"""What the processes of one training do together; with a single process nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric

__all__ = ["gather", "in_first_process", "largest"]


def in_first_process(fabric: Fabric, write: Callable[[], None]) -> None:
    """Calls a function, such as one that writes files, in the first process; the others wait.

    Raises:
        OSError: in every process, if ``write`` raises one in the first; the others would wait for
            ever otherwise.
    """
    failure: list[OSError | None] = [None]
    if fabric.global_rank == 0:
        try:
            write()
        except OSError as error:
            failure = [error]
    if fabric.world_size > 1:
        torch.distributed.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise failure[0]


def largest(fabric: Fabric, *numbers: int) -> list[int]:
    """The largest value of each number in any process, so that all processes decide alike."""
    if fabric.world_size == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.int32, device=fabric.device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    values: list[int] = tensor.tolist()
    return values


def gather(fabric: Fabric, value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
