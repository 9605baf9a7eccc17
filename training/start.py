"""What training begins with: a fresh model, or a trained one that is to learn more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from iqvit.errors import ModelError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Start(Generic[Model]):
    """The model with its random numbers drawn, and where it is from.

    name: its spec. weights: the name of the file, or "random". mean, std: of RGB in 0..1.
    """

    model: Model
    name: str
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: tuple[str, ...] = ()


def fresh_name(spec: str, prefix: str, form: str) -> str:
    """`spec` without its prefix; ModelError where it does not name a fresh model."""
    name = spec.removeprefix(prefix)
    if name == spec or Path(name).is_dir():
        raise ModelError(
            f"--model {spec}: a fresh model is {form}; a trained folder is given with --from FOLDER"
        )
    return name


def require_rate(drop_path: float) -> None:
    """ModelError for a stochastic depth that is none."""
    if not 0 <= drop_path < 1:
        raise ModelError(f"--drop-path {drop_path} is no rate in 0..1")


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Random weights are those of `seed`; the generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
