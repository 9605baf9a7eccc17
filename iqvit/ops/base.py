"""What an integer operator states; one operator is one file of this folder.

An operator is a frozen dataclass of plain integers and tuples. Tensors (weights, tables) are
inputs, never attributes. Zero points, means and scales are folded into integers when it is built.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from iqvit.errors import GraphError
from iqvit.inttype import IntType, QParams

__all__ = [
    "REGISTRY",
    "Op",
    "Sample",
    "broadcast_shapes",
    "want",
]

REGISTRY: dict[str, type["Op"]] = {}


@dataclass(frozen=True)
class Sample:
    """One test case of an operator.

    `inputs` are types (with values for constants), `real` maps the dequantised float64 inputs to
    the float64 output that `run` approximates, `qin`/`qout` say what the integers stand for, and
    `error` is the declared bound of |run - real| in output steps. `macs` is counted by hand.
    `lo..hi` of every input is what the generic tests draw from, extremes included.
    """

    op: "Op"
    inputs: tuple[IntType, ...]
    real: Callable[..., torch.Tensor] | None = None
    qin: tuple[QParams | None, ...] = ()
    qout: QParams | None = None
    error: float = 0.5
    macs: int = 0


@dataclass(frozen=True)
class Op:
    """Base of all integer operators."""

    NAME: ClassVar[str] = ""
    # Places of operands that conversion makes (multipliers, zero points, tables): no parameters.
    MADE: ClassVar[tuple[int, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.NAME:
            return
        if cls.NAME in REGISTRY:
            raise GraphError(f"two operators are named {cls.NAME}")
        REGISTRY[cls.NAME] = cls

    def infer(self, *args: IntType) -> IntType:
        """Result type with its proved range; raises `GraphError` for types that do not fit."""
        raise NotImplementedError

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        """**The definition** of the operator, on integer tensors."""
        raise NotImplementedError

    def macs(self, *args: IntType) -> int:
        """Multiply-accumulates of one evaluation."""
        return 0

    def wide_macs(self, *args: IntType) -> int:
        """Those of `macs` that have an operand of more than 8 bits."""
        return 0

    def accumulator(self, *args: IntType) -> tuple[int, int] | None:
        """Proved range of the int32 accumulator, bias included; None where there is none.

        Raises `OverflowProofError` where it leaves int32.
        """
        return None

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        """The plain TVM lowering: emits Relax through `bb.emit_te` and returns the expression."""
        raise NotImplementedError

    @classmethod
    def samples(cls) -> list[Sample]:
        """Test cases: non-default attributes and extremes included."""
        raise NotImplementedError

    def attributes(self) -> dict[str, int | str | tuple[int, ...]]:
        """The fields by name, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def want(condition: bool, message: str) -> None:
    """Raise `GraphError(message)` unless `condition` holds."""
    if not condition:
        raise GraphError(message)


def broadcast_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The broadcast of two shapes; raises `GraphError` where they do not fit."""
    try:
        return tuple(torch.broadcast_shapes(a, b))
    except RuntimeError as error:
        raise GraphError(f"shapes {a} and {b} do not broadcast") from error
