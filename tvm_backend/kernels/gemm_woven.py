"""GEMMs whose products are computed among the results of the block before, statement by statement.

A CPU that has units for both at once is then busy with both: on Zen 4 dot products take two of
four vector units, and results the others. A task passes over blocks (some rows against a panel) one
after the other; the sums of a block wait on the stack while the products of the next are computed,
and a row of them is requantised and stored among each share of these.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    order = _Order.of(kernel)
    rows = order.rows
    with T.parallel(order.tasks) as task:
        stash = Stash.of(kernel, rows)
        begin, end = (order.first_of(task + i) for i in (0, 1))
        at = _Position.of(order, begin)
        scratch = scratch_of(kernel, rows) if kernel.copies else None
        row0, panel = at.read()
        products = kernel.products(panel, rows)
        products.begin()
        if scratch is not None:
            emit_copy(kernel, scratch, rows, row0)
        products.add(0, kernel.groups, _reader(kernel, scratch, rows, row0)(0))
        _save(products, stash)
        with T.serial(T.max(T.min(end, order.whole) - begin - 1, 0)):
            before = at.read()
            at.advance()
            row0, panel = at.read()
            if scratch is not None:
                with T.If(panel % order.stretch == 0), T.Then():
                    emit_copy(kernel, scratch, rows, row0)
            _emit_products(kernel, (row0, panel), rows, before, scratch, stash)
        if order.left:
            with T.serial(T.max(end - T.max(begin + 1, order.whole), 0)):
                before = at.read()
                at.advance_below()
                row0, panel = at.read()
                if scratch is not None:
                    with T.If(before[0] != row0), T.Then():
                        emit_copy(kernel, scratch, order.left, row0)
                _emit_products(kernel, (row0, panel), order.left, before, scratch, stash)
        row0, panel = at.read()
        with T.serial(rows) as r:
            row = _row_of(kernel, row0, r)
            with T.serial(1, annotations={MARK: True}):
                store_row(kernel, stash.row(row, kernel.isa), row0 + row, panel)


@dataclass(frozen=True)
class _Order:
    """In which order the blocks are passed over: a stretch of panels, whose weights the cache
    holds, for all rows before the next; the rows that are no whole block last, for all panels."""

    m: int
    panels: int
    rows: int
    stretch: int

    @staticmethod
    def of(kernel: Kernel) -> "_Order":
        stretch = max(n for n in range(1, kernel.longest_stretch + 1) if kernel.panels % n == 0)
        return _Order(kernel.gemm.m, kernel.panels, _rows(kernel.gemm, kernel.isa), stretch)

    @property
    def whole(self) -> int:
        """Blocks of all rows."""
        return self.m // self.rows * self.panels

    @property
    def left(self) -> int:
        """Rows of the others."""
        return self.m % self.rows

    @property
    def below(self) -> int:
        """The first of these."""
        return self.m - self.left

    @property
    def tasks(self) -> int:
        """No more than have a block each."""
        blocks = self.m * self.panels // self.rows
        return min(blocks, max(TASKS, blocks // TASK_BLOCKS // TASKS * TASKS))

    def first_of(self, task: Expr) -> Expr:
        """The number of the first block of a task: all have as many rows of all blocks."""
        rows = T.Bind(task * (self.m * self.panels) // self.tasks)
        first = T.min(rows // self.rows, self.whole)
        if self.left:
            first = first + T.max(rows - self.whole * self.rows, 0) // self.left
        return T.Bind(first)


class _Position:
    """Where a task is: the first row of a block, and its panel."""

    def __init__(self, order: _Order, place: Buffer) -> None:
        self._order, self._place = order, place

    @staticmethod
    def of(order: _Order, block: Expr) -> "_Position":
        """That of a block by its number."""
        place = T.alloc_buffer((2,), "int32", scope="global")
        stretch = order.stretch
        count = order.whole // order.panels * stretch
        rest = T.Bind(block % count)
        inside = block < order.whole
        panel = block // count * stretch + rest % stretch
        T.buffer_store(place, T.Select(inside, rest // stretch * order.rows, order.below), [0])
        T.buffer_store(place, T.Select(inside, panel, block - order.whole), [1])
        return _Position(order, place)

    def read(self) -> tuple[Expr, Expr]:
        """Row and panel."""
        return keep(self._place[0]), keep(self._place[1])

    def advance(self) -> None:
        """Go on to the next block of all rows."""
        row0, panel = self.read()
        stretch = self._order.stretch
        wraps = keep(T.Cast("int32", (panel + 1) % stretch == 0))
        below = keep(row0 + wraps * self._order.rows)
        inside = keep(T.Cast("int32", below < self._order.below))
        T.buffer_store(self._place, below * inside, [0])
        T.buffer_store(self._place, panel + 1 - wraps * inside * stretch, [1])

    def advance_below(self) -> None:
        """Go on to the next block of the other rows."""
        row0, panel = self.read()
        there = keep(T.Cast("int32", row0 == self._order.below))
        T.buffer_store(self._place, self._order.below, [0])
        T.buffer_store(self._place, (panel + 1) * there, [1])


def _emit_products(
    kernel: Kernel,
    place: tuple[Expr, Expr],
    rows: int,
    before: tuple[Expr, Expr],
    scratch: Buffer | None,
    stash: Stash,
) -> None:
    """Those of a block's first rows."""
    share, rest = divmod(kernel.groups, stash.rows)
    together = min(share, MOST)
    products = kernel.products(place[1], rows)
    products.begin()
    read = _reader(kernel, scratch, rows, place[0])
    with T.serial(stash.rows) as r:
        first = T.Bind(r * share)
        row = _row_of(kernel, before[0], r)
        with woven() as thread:
            with thread():
                products.add_unrolled(first, together, read(first))
            with thread():
                store_row(kernel, stash.row(row, kernel.isa), before[0] + row, before[1])
        if share > together:
            products.add(first + together, share - together, read(first + together))
    if rest:
        done = share * stash.rows
        products.add(done, rest, read(done))
    _save(products, stash)


def _row_of(kernel: Kernel, row0: Expr, r: Expr) -> Expr:
    # Rows past the last one repeat it, and are stored over it.
    return keep(T.min(r, kernel.gemm.m - 1 - row0))


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
