"""Several models scored side by side, unit by unit: what they share is kept for one unit only."""

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.shards import Job, Record, Scored, units

T = TypeVar("T", bound="Tensor | Mapping[str, Tensor]")


def score_together(
    jobs: Mapping[str, Job], progress: Callable[[int, int], None] | None = None
) -> dict[str, Scored]:
    """Every unit by all jobs before the next unit; each job's records are those of `score_all`.

    progress(images done, images) is called after each unit. Raises DataError for jobs of different
    data, and what the jobs raise.
    """
    sizes = {(job.images, job.unit) for job in jobs.values()}
    if len(sizes) != 1:
        raise DataError(f"jobs of different sizes cannot be scored together: {sorted(sizes)}")
    ((images, unit),) = sizes
    begun = time.perf_counter()
    records: dict[str, list[Record]] = {name: [] for name in jobs}
    for index in range(units(next(iter(jobs.values())))):
        for name, job in jobs.items():
            records[name].append(job.score(index))
        if progress is not None:
            progress(min((index + 1) * unit, images), images)
    seconds = time.perf_counter() - begun
    return {name: Scored(found, seconds) for name, found in records.items()}


class Remembered(Generic[T]):
    """A model whose last answer is kept, for several that are compared with it on one image."""

    def __init__(self, answer: Callable[[Tensor], T]) -> None:
        self.answer = answer
        self.last: tuple[Tensor, T] | None = None

    def __call__(self, images: Tensor) -> T:
        if self.last is None or not torch.equal(self.last[0], images):
            self.last = images, self.answer(images)
        return self.last[1]


class Traced(Generic[T]):
    """A model with a digest of all that it has answered: types, shapes and bits of every tensor."""

    def __init__(self, answer: Callable[[Tensor], T]) -> None:
        self.answer, self.images = answer, 0
        self.sha256 = hashlib.sha256()

    def __call__(self, images: Tensor) -> T:
        found = self.answer(images)
        self.images += len(images)
        tensors = {"": found} if isinstance(found, Tensor) else found
        for name, value in tensors.items():
            self.sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            self.sha256.update(value.contiguous().numpy().tobytes())
        return found
