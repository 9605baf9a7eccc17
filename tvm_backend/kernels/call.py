"""What a fast kernel is to the lowering: a function to be called, and with what."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from iqvit.tvm_backend.kernels.script import PrimFunc


@dataclass(frozen=True)
class As:
    """A value of the graph read as another shape of as many elements."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a generated TIR function.

    `operands` are names of the graph's values, constant arrays or results of other calls. Equal
    `key`s stand for equal functions; `make(name)` generates one.
    """

    kernel: str
    """The family, for reports and as the stem of the function's name."""
    key: Hashable
    make: Callable[[str], PrimFunc]
    operands: "tuple[str | As | np.ndarray | Call, ...]"
    shape: tuple[int, ...]
    """Of the function's output: as many elements as the value has, whatever its shape."""
    dtype: str
    also: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Shapes and types of the outputs after the first."""
    reads: frozenset[str] = field(init=False)
    """The graph's values that this call and those before it read."""

    def __post_init__(self) -> None:
        reads: set[str] = set()
        for operand in self.operands:
            if isinstance(operand, str):
                reads.add(operand)
            elif isinstance(operand, As):
                reads.add(operand.name)
            elif isinstance(operand, Call):
                reads.update(operand.reads)
        object.__setattr__(self, "reads", frozenset(reads))
