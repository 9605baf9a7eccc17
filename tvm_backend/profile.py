"""How long every function of a compiled program takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tvm

from iqvit.tvm_backend.artifact import read_manifest
from iqvit.tvm_backend.functions import Function, read_functions
from iqvit.tvm_backend.runtime import open_library
from iqvit.tvm_backend.weights import FUNCTION as WEIGHT

RUNS = 20
BUILTIN = "vm.builtin."
"""How the names of the virtual machine's own functions begin (memory, views, checks)."""

_Call = tuple[str, Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Row:
    """One function of the library: all its calls in one run."""

    name: str
    calls: int
    ms: float
    about: Function | None
    """What it computes; None where the manifest does not tell."""


@dataclass(frozen=True)
class Profile:
    """Where the time of a run goes."""

    rows: tuple[Row, ...]
    """The slowest first."""
    ms: float
    """Of the whole run: median milliseconds."""

    @property
    def kernels_ms(self) -> float:
        """Milliseconds of all functions."""
        return sum(row.ms for row in self.rows)

    @property
    def between_ms(self) -> float:
        """What lies between the functions: memory and views, and where others use the machine, too,
        the interruptions, which medians of short calls leave out."""
        return self.ms - self.kernels_ms


def profile(
    folder: Path, runs: int = RUNS, progress: Callable[[int, int], None] | None = None
) -> Profile:
    """Time every function of the library in `folder`, on random pixels, at the number of threads
    that is set: medians of `runs` runs, call by call.

    The calls of one run are recorded, with their tensors, and then made again in the same order
    without the virtual machine, because its instrument takes longer than a small kernel. That
    costs about half a microsecond a call. Whole runs take turns with them. Raises as
    `read_manifest` and `read_functions`.
    """
    manifest = read_manifest(folder)
    about = read_functions(manifest)
    machine = open_library(folder)
    shape = manifest["inputs"][0]["shape"]
    image = tvm.runtime.tensor(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    calls = _record(machine, image)
    times: list[list[float]] = []
    whole: list[float] = []
    for run in range(runs):
        # The first of two finds the caches as the other left them.
        whole.append([_seconds(machine["main"], image) for _ in range(2)][-1])
        times.append([[_seconds(f, *args) for _, f, args in calls] for _ in range(2)][-1])
        if progress is not None:
            progress(run + 1, runs)
    found: dict[str, list[float]] = {}
    for (name, _, _), *seconds in zip(calls, *times, strict=True):
        found.setdefault(name, []).append(1e3 * median(seconds))
    rows = [Row(name, len(ms), sum(ms), about.get(name)) for name, ms in found.items()]
    return Profile(tuple(sorted(rows, key=lambda row: -row.ms)), 1e3 * median(whole))


def _record(machine: Any, image: Any) -> list[_Call]:
    """The calls of one run. Their tensors hold the memory that the run had, so that the calls, in
    this order, compute the same again."""
    calls: list[_Call] = []

    def watch(function: Any, name: str, before: bool, _result: Any, *args: Any) -> None:
        if before and name != WEIGHT and not name.startswith(BUILTIN):
            calls.append((name, function, args))

    machine.set_instrument(watch)
    machine["main"](image)
    machine.set_instrument(None)
    return calls


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
