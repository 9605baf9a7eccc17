"""What the code of an element-wise operator depends on, and where it is computed."""

from dataclasses import dataclass

import numpy as np

from iqvit.ops.base import Op
from iqvit.tvm_backend.kernels.call import As
from iqvit.tvm_backend.kernels.gemm_form import Extra
from iqvit.tvm_backend.kernels.integers import Wide, as_int32, keep, limited, widen
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, span, splat

Value = str | np.ndarray | As


@dataclass(frozen=True)
class Operand:
    """An operand of a stage besides its running value."""

    kind: str
    """`full` (one element for each result), `channel` (one a column), `row`, `single`, or one not
    read by position: `table`, `bytes` (a table of 8-bit entries, four in an element), `segments` (a
    table in registers, zero beyond it), `planes` (the same by bytes), `full_planes` (those of a
    table that ends where its last entry does), `scalars`."""
    dtype: str
    size: int

    def read(self, buffer: Buffer, m: Expr | int, n: Expr | int, lanes: int) -> Expr:
        """The elements that belong to row m, columns n.. as int32."""
        if self.kind == "full":
            return as_int32(buffer[m, span(n, lanes)])
        if self.kind == "channel":
            return as_int32(buffer[span(n, lanes)])
        return splat(as_int32(buffer[m if self.kind == "row" else 0]), "int32", lanes)


@dataclass(frozen=True)
class Stage:
    """What the code of one element-wise operator depends on. Its multipliers, offsets and shifts
    are its last operand, int64, so that all nodes of a kind share a function."""

    op: type[Op]
    dtype: str
    lo: int
    hi: int
    fits: bool
    """Whether the result fits int32 before it saturates."""
    operands: tuple[Operand, ...]
    least: int = 0
    """The input that a `lookup` table begins with."""
    upper: bool = False
    """Whether a `rectified` reads the upper halves of its products alone."""
    raised: bool = False
    """Whether its values are shifted to the left for that."""
    summed: bool = False
    """Whether its rectifier is a part of the sum that interpolates."""

    def extras(self, rows: int, columns: int, prefix: str) -> tuple[Extra, ...]:
        """The parameters for the operands."""
        shapes = {"full": (rows, columns)}
        return tuple(
            Extra(f"{prefix}{i}", shapes.get(operand.kind, (operand.size,)), operand.dtype)
            for i, operand in enumerate(self.operands)
        )

    @property
    def kinds(self) -> set[str]:
        """How its operands are read."""
        return {operand.kind for operand in self.operands}


@dataclass(frozen=True)
class Place:
    """A stage where it is computed: the running value, its row and columns, the operands."""

    stage: Stage
    value: Expr
    m: Expr | int
    n: Expr | int
    buffers: tuple[Buffer, ...]
    isa: Isa

    @property
    def lanes(self) -> int:
        return lanes_of(self.value)

    def read(self, i: int) -> Expr:
        """The elements of operand `i`, as int32."""
        return keep(self.stage.operands[i].read(self.buffers[i], self.m, self.n, self.lanes))

    def scalar(self, i: int) -> Expr:
        """An attribute as int64."""
        return self.buffers[-1][i]

    def lane(self, i: int) -> Expr:
        """An attribute in all lanes, as int32."""
        return self.const(T.Cast("int32", self.scalar(i)))

    def const(self, value: Expr | int) -> Expr:
        """A number in all lanes, as int32."""
        return splat(value, "int32", self.lanes)

    def factor(self, i: int) -> Wide:
        """An attribute of 32 bits in all lanes, as int64.

        All parts are alike: LLVM sees of the first that it fits 32 bits, and then multiplies so.
        """
        wide = widen(keep(self.lane(i)))
        return Wide((wide.parts[0],) * len(wide.parts))

    def limited(self, value: Wide) -> Expr:
        """The saturated result."""
        return limited(value, self.stage.lo, self.stage.hi, self.stage.fits)
