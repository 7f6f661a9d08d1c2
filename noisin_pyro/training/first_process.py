"""Runs a function, such as one that writes files, in one process of several."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed
from lightning_fabric import Fabric

__all__ = ["in_first_process"]


def in_first_process(fabric: Fabric, write: Callable[[], None]) -> None:
    """Calls ``write`` in the first process while the others wait.

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
