"""What becomes of the sums of a GEMM's block: requantised, through the epilogue, to the output."""

from dataclasses import dataclass

from iqvit.tvm_backend.kernels.balance import parts_of
from iqvit.tvm_backend.kernels.gemm_form import Kernel
from iqvit.tvm_backend.kernels.interleave import MARK
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products
from iqvit.tvm_backend.kernels.requant import exact_int64, fits_high_half, high_half, narrow
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import STACK, lanes_of, pieces, span, splat, typed


@dataclass(frozen=True)
class Stash:
    """The sums of some rows on the stack, from where code for one row reads them.

    Elements that are vectors make LLVM align the stack, and with it what it spills. TVM lets such a
    buffer take the memory of one that is done with, and then trips over it; this one is made, and
    written to, before all others of a task.
    """

    rows: int
    parts: tuple[Buffer, ...]
    """`[rows, vectors]` each, as many vectors of a row as TVM leaves on the stack."""

    @staticmethod
    def of(kernel: Kernel, rows: int) -> "Stash":
        """A place for that many rows; the first statements of a task."""
        isa = kernel.isa
        most = max(1, min(isa.vectors, (STACK - 1) // (4 * isa.lanes * rows)))
        shapes = [(rows, count) for count in parts_of(isa.vectors, most)]
        vector = typed("int32", isa.lanes)
        parts = tuple(T.alloc_buffer(shape, vector, scope="global") for shape in shapes)
        for part in parts:
            T.buffer_store(part, splat(0, "int32", isa.lanes), [0, 0])
        return Stash(rows, parts)

    @staticmethod
    def of_block(kernel: Kernel, rows: int) -> "Stash":
        """A place for what `emit_stores` takes at a time of a block of that many rows."""
        return Stash.of(kernel, min(rows, max(1, (STACK - 1) // (4 * kernel.isa.panel))))

    def _place(self, j: int) -> tuple[Buffer, int]:
        most = int(self.parts[0].shape[1])
        return self.parts[j // most], j % most

    def save(self, rows: list[Buffer], isa: Isa) -> None:
        """Keep the sums of rows, `Products.sums`."""
        for r, row in enumerate(rows):
            for j in range(isa.vectors):
                buffer, at = self._place(j)
                T.buffer_store(buffer, row[j, span(0, isa.lanes)], [r, at])

    def row(self, row: Expr, isa: Isa) -> list[Expr]:
        """The vectors of one of them."""
        places = (self._place(j) for j in range(isa.vectors))
        return [buffer[row, at] for buffer, at in places]


def emit_stores(kernel: Kernel, stash: Stash, products: Products, row0: Expr) -> None:
    """Requantise a block's sums and store them from row `row0` of the output on.

    Rows past the last one are left out. Row by row, in code for one row. stash: `Stash.of_block`.
    """
    products.finish()
    for first in range(0, len(products.sums), stash.rows):
        rows = products.sums[first : first + stash.rows]
        stash.save(rows, kernel.isa)
        _emit_rows(kernel, stash, len(rows), products.panel, row0 + first)


def _emit_rows(kernel: Kernel, sums: Stash, rows: int, panel: Expr, row0: Expr) -> None:
    left = kernel.gemm.n % kernel.isa.panel
    if left == 0:
        _emit_full(kernel, sums, rows, panel, row0)
        return
    if kernel.gemm.n < kernel.isa.panel:
        _emit_partial(kernel, sums, rows, panel, row0, left)
        return
    with T.If(panel < kernel.panels - 1):
        with T.Then():
            _emit_full(kernel, sums, rows, panel, row0)
        with T.Else():
            _emit_partial(kernel, sums, rows, panel, row0, left)


def _emit_full(kernel: Kernel, sums: Stash, rows: int, panel: Expr, row0: Expr) -> None:
    with T.serial(T.min(rows, kernel.gemm.m - row0), annotations={MARK: True}) as r:
        store_row(kernel, sums.row(r, kernel.isa), row0 + r, panel)


def _emit_partial(
    kernel: Kernel, sums: Stash, rows: int, panel: Expr, row0: Expr, left: int
) -> None:
    # Through a buffer, so that the last columns leave in pieces and none beyond them.
    isa = kernel.isa
    buffer = T.alloc_buffer((isa.panel,), kernel.gemm.value_dtype, scope="global")
    with T.serial(T.min(rows, kernel.gemm.m - row0)) as r:
        values = _values(kernel, sums.row(r, isa), panel)
        lanes = isa.panel // len(values)
        for i, value in enumerate(values):
            T.buffer_store(buffer, value, [span(i * lanes, lanes)])
        for offset, width in pieces(left, lanes):
            value = buffer[span(offset, width)]
            _store(kernel, [value], row0 + r, panel * isa.panel + offset)


def store_row(kernel: Kernel, sums: list[Expr], m: Expr, panel: Expr) -> None:
    """Requantise and store the sums of a row of a whole panel as row m of the output."""
    _store(kernel, _values(kernel, sums, panel), m, panel * kernel.isa.panel)


def _values(kernel: Kernel, sums: list[Expr], panel: Expr) -> list[Expr]:
    """The results of one row of a block: vectors of `value_dtype` that follow each other."""
    isa, requant = kernel.isa, kernel.gemm.requant
    lane = span(0, isa.lanes)
    if requant is None or kernel.mult is None or kernel.scalars is None:
        return sums
    given = kernel.scalars
    if fits_high_half(requant):
        scaled = [
            high_half(s, [kernel.mult[panel, j, form, lane] for form in range(3)], given)
            for j, s in enumerate(sums)
        ]
    else:
        scaled = [
            exact_int64(s, kernel.mult[panel, j, 0, lane], requant, given)
            for j, s in enumerate(sums)
        ]
    return narrow([T.Bind(s) for s in scaled], requant.dtype, requant.lo, requant.hi, isa)


def _store(kernel: Kernel, values: list[Expr], m: Expr, n: Expr) -> None:
    if kernel.epilogue is not None:
        values = kernel.epilogue(values, m, n, kernel.extras)
    for i, value in enumerate(values):
        lanes = lanes_of(value)
        T.buffer_store(kernel.out, value, [m, span(n + i * lanes, lanes)])
