"""Several products of the same rows as one: their columns side by side."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from iqvit.inttype import IntType, constant_type
from iqvit.ops.base import Op, want
from iqvit.ops.linear import known
from iqvit.ops.row_linear import RowLinear


@dataclass(frozen=True)
class Together(Op):
    """Several `row_linear` of one number of columns, with their weights, biases and multipliers
    one after the other; x int8 or uint8 `[..., K]`, result `[..., N]` of all.

    The operator exists while a program is compiled only, and so is none of the text format.
    """

    ops: tuple[RowLinear, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "NAME", RowLinear.NAME)

    def parts(self, *args: IntType) -> list[tuple[IntType, ...]]:
        """The types of the operands of each."""
        x, peak, *constants = args
        arrays = [np.split(known(kind), len(self.ops)) for kind in constants]
        return [(x, peak, *map(constant_type, part)) for part in zip(*arrays, strict=True)]

    def infer(self, *args: IntType) -> IntType:
        want(args[2].shape[0] % len(self.ops) == 0, f"{args[2]} is not {len(self.ops)} weights")
        kinds = [op.infer(*part) for op, part in zip(self.ops, self.parts(*args), strict=True)]
        want(len({kind.dtype for kind in kinds}) == 1, "the parts have one type")
        shape = (*args[0].shape[:-1], args[2].shape[0])
        lo, hi = min(kind.lo for kind in kinds), max(kind.hi for kind in kinds)
        return replace(kinds[0], shape=shape, lo=lo, hi=hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        x, peak, *constants = args
        split = [tensor.chunk(len(self.ops)) for tensor in constants]
        parts = zip(self.ops, *split, strict=True)
        return torch.cat([op.run(x, peak, *part) for op, *part in parts], -1)

    def macs(self, *args: IntType) -> int:
        return sum(op.macs(*part) for op, part in zip(self.ops, self.parts(*args), strict=True))

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        raise TypeError("products are joined for a kernel only")
