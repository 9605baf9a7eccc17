"""One process or several: `torchrun` tells by environment variables, everything else is here."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from iqvit.errors import IqvitError

CPU = torch.device("cpu")


class ProcessLost(IqvitError):
    """Another process of the run has ended, or the way to it is interrupted."""


@dataclass(frozen=True)
class World:
    """This process among `size` of them, and the device that it computes on.

    What several processes do together raises `ProcessLost` where one of them is gone.
    """

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
            with _together():
                distributed.all_reduce(tensor)
        return tensor

    def gather(self, values: list[Any]) -> list[Any]:
        """The processes' lists, one after the other; values as JSON has them, for they are sent."""
        if self.size == 1:
            return values
        parts = self._texts(json.dumps(values).encode(), everywhere=True)
        return [value for part in parts for value in json.loads(part)]

    def collect(self, text: bytes) -> list[bytes]:
        """The processes' texts by rank, in the process that leads; nothing in the others."""
        return [text] if self.size == 1 else self._texts(text, everywhere=False)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            with _together():
                distributed.barrier()

    def _texts(self, text: bytes, *, everywhere: bool) -> list[bytes]:
        """Sent as padded tensors: torch's own way of sending objects would unpickle them."""
        size = torch.tensor([len(text)], device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        with _together():
            distributed.all_gather(sizes, size)
        lengths = [int(length) for length in sizes]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        if text:
            padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        padded = padded.to(self.device)
        there = everywhere or self.leads
        found = [torch.empty_like(padded) for _ in range(self.size)] if there else []
        with _together():
            if everywhere:
                distributed.all_gather(found, padded)
            else:
                distributed.gather(padded, found if there else None)
        return [
            part[:length].cpu().numpy().tobytes()
            for part, length in zip(found, lengths, strict=False)
        ]


@contextmanager
def processes(*, gpus: bool = True) -> Iterator[World]:
    """The world that `torchrun` started (nccl on GPUs, gloo otherwise), or one process alone.

    gpus: each process takes one where there are any.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = CPU
    if gpus and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    with _together():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """torch tells of a lost process by a RuntimeError, and has no class of its own for it."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        raise ProcessLost(
            "another process of this run has ended or cannot be reached: "
            f"{reason[-1] if reason else type(error).__name__}"
        ) from error
