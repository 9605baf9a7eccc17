"""Training batches: which samples, in which order, with which random numbers."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from iqvit.errors import IqvitError
from iqvit.processes import World
from iqvit.training.task import Task

Key = tuple[int, int]
"""(epoch, index of the sample)."""


def seed_of(*parts: int) -> int:
    """A seed of 63 bits from integers; other integers give an unrelated one."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Samples(Dataset):
    """The task's samples; each draws from a state of its own, whichever process makes it."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __len__(self) -> int:
        return self.task.samples

    def __getitem__(self, key: Key) -> object:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, index))
            try:
                return self.task.sample(index)
            except IqvitError as error:
                return error  # raised in another process, it would come with that one's traceback


class Collate:
    """The task's batch of samples, or the first error among them."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, samples: list[Any]) -> Any:
        errors = [sample for sample in samples if isinstance(sample, IqvitError)]
        return errors[0] if errors else self.task.collate(samples)


class Order:
    """The batches of an epoch for one process: shuffled anew each epoch, the odd rest left out.

    batch: samples a step over all processes. `epoch` is set before iterating.
    """

    def __init__(self, samples: int, batch: int, seed: int, world: World) -> None:
        self.samples, self.batch, self.seed, self.world = samples, batch, seed, world
        self.epoch = 0

    def __len__(self) -> int:
        return self.samples // self.batch

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.samples, generator=generator).tolist()
        for step in range(len(self)):
            whole = order[step * self.batch : (step + 1) * self.batch]
            yield [(self.epoch, index) for index in whole[self.world.rank :: self.world.size]]


def loader(task: Task, order: Order, seed: int, workers: int) -> DataLoader:
    """Batches of `order`; with `workers` other processes make them, otherwise this one."""
    return DataLoader(
        Samples(task, seed),
        batch_sampler=order,
        collate_fn=Collate(task),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
