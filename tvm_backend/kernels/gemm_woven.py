"""GEMMs whose products are computed among the results of the block before, statement by statement.

A CPU that has units for both at once is then busy with both: on Zen 4 dot products take two of
four vector units, and results the others. A task passes over blocks (some rows against a panel) one
after the other; the sums of a block wait on the stack while the products of the next are computed,
and a row of them is requantised and stored among each share of these.
"""

from collections.abc import Callable

from iqvit.tvm_backend.kernels.gemm_form import (
    Gemm,
    Kernel,
    groups_of,
    longest_stretch,
    panels_of,
)
from iqvit.tvm_backend.kernels.gemm_operands import emit_copy, scratch_of
from iqvit.tvm_backend.kernels.gemm_stores import Stash, store_row
from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.interleave import MARK, woven
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products, Read
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import span

TASKS = 8
"""Tasks of a small GEMM; threads share them evenly if there are 2, 4 or 8."""
TASK_BLOCKS = 32
"""Blocks of a task of a larger one, whose first products and last results are not woven."""
MOST = 12
"""Groups of K that are woven with a row of results; what is left of its share follows."""


def weaves(gemm: Gemm, isa: Isa) -> bool:
    """Whether the instruction set is for it, and the GEMM has whole panels and enough to weave."""
    rows = _rows(gemm, isa)
    return rows > 1 and gemm.n % isa.panel == 0 and groups_of(gemm, isa) >= rows


def passes_once(gemm: Gemm, isa: Isa) -> bool:
    """Whether it weaves, and a task reads rows once, for all columns."""
    return weaves(gemm, isa) and longest_stretch(gemm, isa) == panels_of(gemm, isa)


def _rows(gemm: Gemm, isa: Isa) -> int:
    return min(gemm.m, isa.woven)


def emit_woven_tasks(kernel: Kernel) -> None:
    """The whole GEMM, parallel over tasks."""
    rows = _rows(kernel.gemm, kernel.isa)
    stretch = max(n for n in range(1, kernel.longest_stretch + 1) if kernel.panels % n == 0)
    blocks = -(-kernel.gemm.m // rows) * kernel.panels
    tasks = min(blocks, max(TASKS, blocks // TASK_BLOCKS // TASKS * TASKS))
    with T.parallel(tasks) as task:
        stash = Stash.of(kernel, rows)
        begin, end = (T.Bind((task + i) * blocks // tasks) for i in (0, 1))
        at = _Position.of(kernel, rows, stretch, begin)
        scratch = scratch_of(kernel, rows) if kernel.copies else None
        row0, panel = at.read()
        products = kernel.products(panel, rows)
        products.begin()
        if scratch is not None:
            emit_copy(kernel, scratch, rows, row0)
        products.add(0, kernel.groups, _reader(kernel, scratch, rows, row0)(0))
        _save(products, stash)
        with T.serial(end - begin - 1):
            before = at.read()
            at.advance()
            _emit_block(kernel, at, before, scratch, stash)
        row0, panel = at.read()
        with T.serial(rows) as r:
            m = _row_of(kernel, row0, r)
            with T.serial(1, annotations={MARK: True}):
                store_row(kernel, stash.row(r, kernel.isa), m, panel)


class _Position:
    """Where a task is: the first row of a block, and its panel.

    A stretch of panels, whose weights the cache holds, is passed over for all rows before the next.
    """

    def __init__(self, kernel: Kernel, rows: int, stretch: int, place: Buffer) -> None:
        self.rows, self.stretch, self.m = rows, stretch, kernel.gemm.m
        self._place = place

    @staticmethod
    def of(kernel: Kernel, rows: int, stretch: int, block: Expr) -> "_Position":
        """That of a block by its number."""
        whole = -(-kernel.gemm.m // rows) * stretch
        rest = T.Bind(block % whole)
        place = T.alloc_buffer((2,), "int32", scope="global")
        T.buffer_store(place, rest // stretch * rows, [0])
        T.buffer_store(place, block // whole * stretch + rest % stretch, [1])
        return _Position(kernel, rows, stretch, place)

    def read(self) -> tuple[Expr, Expr]:
        """Row and panel."""
        return keep(self._place[0]), keep(self._place[1])

    def advance(self) -> None:
        """Go on to the next block."""
        row0, panel = self.read()
        wraps = keep(T.Cast("int32", (panel + 1) % self.stretch == 0))
        below = keep(row0 + wraps * self.rows)
        inside = keep(T.Cast("int32", below < self.m))
        T.buffer_store(self._place, below * inside, [0])
        T.buffer_store(self._place, panel + 1 - wraps * inside * self.stretch, [1])


def _emit_block(
    kernel: Kernel,
    at: _Position,
    before: tuple[Expr, Expr],
    scratch: Buffer | None,
    stash: Stash,
) -> None:
    """The products of a block, among the results of the one before."""
    rows = at.rows
    share, rest = divmod(kernel.groups, rows)
    together = min(share, MOST)
    row0, panel = at.read()
    products = kernel.products(panel, rows)
    products.begin()
    if scratch is not None:
        with T.If(panel % at.stretch == 0), T.Then():
            emit_copy(kernel, scratch, rows, row0)
    read = _reader(kernel, scratch, rows, row0)
    with T.serial(rows) as r:
        first = T.Bind(r * share)
        m = _row_of(kernel, before[0], r)
        with woven() as thread:
            with thread():
                products.add_unrolled(first, together, read(first))
            with thread():
                store_row(kernel, stash.row(r, kernel.isa), m, before[1])
        if share > together:
            products.add(first + together, share - together, read(first + together))
    if rest:
        products.add(share * rows, rest, read(share * rows))
    _save(products, stash)


def _row_of(kernel: Kernel, row0: Expr, r: Expr) -> Expr:
    # Rows past the last one repeat it, with equal sums, and so are stored over it.
    return keep(T.min(row0 + r, kernel.gemm.m - 1))


def _save(products: Products, stash: Stash) -> None:
    products.finish()
    stash.save(products.sums, products.isa)


def _reader(
    kernel: Kernel, scratch: Buffer | None, rows: int, row0: Expr
) -> Callable[[Expr | int], Read]:
    """What reads groups of K from a given one on: of a copy, or of x."""
    source, group = kernel.x, kernel.isa.k_group
    places = list(range(rows))
    if scratch is None:
        places = [T.Bind(T.min(row0 + r, kernel.gemm.m - 1)) for r in range(rows)]
    else:
        source = scratch
    return lambda base: lambda r, k: source[places[r], span((base + k) * group, group)]
