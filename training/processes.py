"""One process or several: `torchrun` tells by environment variables, everything else is here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among `size` of them, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """The indices below `total` that are this process's; together they are all of them."""
        return range(self.rank, total, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' tensors, on the device of the world."""
        tensor = tensor.to(self.device)
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, values: list[Any]) -> list[Any]:
        """The processes' lists, one after the other; plain values, for they are sent."""
        if self.size == 1:
            return values
        lists: list[Any] = [None] * self.size
        distributed.all_gather_object(lists, values)
        return [value for part in lists for value in part]

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def processes() -> Iterator[World]:
    """The world that `torchrun` started (nccl on GPUs, gloo otherwise), or one process alone."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        distributed.destroy_process_group()
