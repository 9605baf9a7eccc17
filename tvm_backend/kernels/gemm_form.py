"""What a GEMM computes, and a kernel that is being written."""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products
from iqvit.tvm_backend.kernels.requant import Requant, Scalars, constants_of
from iqvit.tvm_backend.kernels.row_scale import Scale
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import bits_of

PANEL_BYTES = 512 * 1024
"""Weights that the tasks of one stretch share: about half of the L2 cache of current x86 cores."""

Epilogue = Callable[[list[Expr], Expr, Expr, tuple[Buffer, ...]], list[Expr]]
"""`epilogue(values, m, n, extras) -> stored`: `values` are the requantised results of row `m` from
column `n` on, vectors of equally many lanes (any power of two, also one) that follow each other; so
are the results, of `out_dtype`."""


@dataclass(frozen=True)
class Gemm:
    """What is computed: shapes, types and requantisation of one int8 GEMM."""

    m: int
    n: int
    k: int
    x_dtype: str
    """uint8 or int8."""
    requant: Requant | None
    """None: the epilogue (or the output) gets the int32 accumulators including the bias."""
    out_dtype: str
    """Type of the stored output; differs from `requant.dtype` only by an epilogue."""
    scale: Scale | None = None
    """How x comes about of int16 rows, which are read instead; None: x is read."""
    given: bool = False
    """Whether the function is given the numbers of `requant` (`requant.scalars_of`), after the
    multipliers, so that GEMMs of one `requant.form_of` share it."""

    @property
    def value_dtype(self) -> str:
        """Type of the value that the epilogue gets."""
        return "int32" if self.requant is None else self.requant.dtype


@dataclass(frozen=True)
class Extra:
    """A further input of the kernel, for its epilogue."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Kernel:
    """A kernel that is being written: what it computes, for what, and its parameters."""

    gemm: Gemm
    isa: Isa
    x: Buffer
    weight: Buffer
    bias: Buffer
    mult: Buffer | None
    scalars: Scalars | None
    extras: tuple[Buffer, ...]
    out: Buffer
    epilogue: Epilogue | None
    scaling: tuple[Buffer, Buffer] | None = None
    """What is taken off rows before they are scaled, and where their peaks go."""

    @property
    def groups(self) -> int:
        """Groups of K."""
        return groups_of(self.gemm, self.isa)

    @property
    def panels(self) -> int:
        """Panels of columns."""
        return panels_of(self.gemm, self.isa)

    @property
    def longest_stretch(self) -> int:
        """The most panels that the cache holds while all rows pass over them."""
        return longest_stretch(self.gemm, self.isa)

    def products(self, panel: Expr, rows: int) -> Products:
        """Those of a block of rows with a panel."""
        isa = self.isa
        shape = (isa.vectors, isa.lanes)
        sums = [T.alloc_buffer(shape, "int32", scope="global") for _ in range(rows)]
        return Products(isa, self.weight, self.bias, panel, sums)

    @property
    def copies(self) -> bool:
        """Whether `dot` cannot read x where it lies."""
        gemm, isa = self.gemm, self.isa
        read = gemm.scale is None and gemm.x_dtype == isa.operand
        return not read or gemm.k % isa.k_group != 0


def groups_of(gemm: Gemm, isa: Isa) -> int:
    """Groups of K."""
    return -(-gemm.k // isa.k_group)


def panels_of(gemm: Gemm, isa: Isa) -> int:
    """Panels of columns."""
    return -(-gemm.n // isa.panel)


def longest_stretch(gemm: Gemm, isa: Isa) -> int:
    """The most panels that the cache holds while all rows pass over them."""
    vectors = groups_of(gemm, isa) * isa.vectors
    panel_bytes = vectors * isa.group_weights * bits_of(isa.weight) // 8
    return min(panels_of(gemm, isa), max(1, PANEL_BYTES // panel_bytes))


def scalars_arg(gemm: Gemm, requant: Requant) -> Scalars:
    """The numbers of the requantisation: constants, or a parameter that is declared here."""
    if not gemm.given:
        return constants_of(requant)
    numbers = T.arg("scalars", T.buffer((3,), "int64"))
    return Scalars(numbers[0], numbers[1], numbers[2])
