"""What the tasks share: pixels into a network, images kept in memory, facts for a checkpoint."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

USUAL_CACHE = 4 << 30
"""Bytes of decoded images that a process keeps in memory."""


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 (images / 255 - mean) / std, of each channel."""
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255.0 - shift) / scale


class Cached:
    """The tensors that `read(index)` gives, kept in memory up to `most` bytes."""

    def __init__(self, read: Callable[[int], tuple[Tensor, ...]], most: int) -> None:
        self.read, self.left = read, most
        self.kept: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, index: int) -> tuple[Tensor, ...]:
        if index in self.kept:
            return self.kept[index]
        tensors = self.read(index)
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self.left:
            self.left -= size
            self.kept[index] = tensors
        return tensors


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which is what a checkpoint gives back."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def names_hash(paths: Iterable[Path]) -> str:
    """SHA-256 of the last three parts of the images' paths: says on which data a run is."""
    names = ["/".join(path.parts[-3:]) for path in paths]
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
