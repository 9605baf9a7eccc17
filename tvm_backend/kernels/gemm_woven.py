"""GEMMs whose products are computed among the results of the block before, statement by statement.

A CPU that has units for both at once is then busy with both: on Zen 4 dot products take two of
four vector units, and results the others. A task passes over blocks (some rows against a panel) one
after the other; the sums of a block wait on the stack while the products of the next are computed,
and a row of them is requantised and stored among each share of these.
"""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.tvm_backend.kernels.gemm_form import (
    PANEL_BYTES,
    Gemm,
    Kernel,
    groups_of,
    longest_stretch,
    panels_of,
)
from iqvit.tvm_backend.kernels.gemm_operands import emit_copy, scratch_of
from iqvit.tvm_backend.kernels.gemm_stores import Stash, store_row
from iqvit.tvm_backend.kernels.instructions import CACHE_LINE, prefetch
from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.interleave import MARK, woven
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.products import Products, Read
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import bits_of, element_of, span

TASKS = 8
"""Tasks of a small GEMM; threads share them evenly if there are 2, 4 or 8."""
TASK_BLOCKS = 64
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
    with T.parallel(order.tasks) as number:
        stash = Stash.of(kernel, rows)
        begin, end = (order.first_of(number + i) for i in (0, 1))
        at = _Position.of(order, begin)
        scratch = scratch_of(kernel, rows) if kernel.copies else None
        task = _Task(kernel, order, stash, scratch)
        task.emit_first(at.read())
        with T.serial(T.max(T.min(end, order.whole) - begin - 1, 0)):
            before = at.read()
            at.advance()
            row0, panel = at.read()
            task.emit_block((row0, panel), rows, before, panel % order.stretch == 0)
        if order.left:
            with T.serial(T.max(end - T.max(begin + 1, order.whole), 0)):
                before = at.read()
                at.advance_below()
                row0, panel = at.read()
                task.emit_block((row0, panel), order.left, before, before[0] != row0)
        task.emit_last(at.read())


@dataclass(frozen=True)
class _Order:
    """In which order the blocks are passed over: a stretch of panels, whose weights the cache
    holds, for all rows before the next; the rows that are no whole block last, for all panels."""

    m: int
    panels: int
    rows: int
    stretch: int
    asks: bool
    """Whether rows are asked for before they are read: such as are scaled, if L2 may have lost
    them."""

    @staticmethod
    def of(kernel: Kernel) -> "_Order":
        stretch = max(n for n in range(1, kernel.longest_stretch + 1) if kernel.panels % n == 0)
        m, k = kernel.gemm.m, kernel.gemm.k
        asks = kernel.scaling is not None and 2 * m * k > PANEL_BYTES // 2
        return _Order(m, kernel.panels, _rows(kernel.gemm, kernel.isa), stretch, asks)

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
        work = T.int64(self.m * self.panels)
        rows = T.Bind(T.Cast("int32", T.Cast("int64", task) * work // T.int64(self.tasks)))
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


@dataclass(frozen=True)
class _Task:
    """What emits the code for the blocks of a task, each given by its first row and its panel."""

    kernel: Kernel
    order: _Order
    stash: Stash
    scratch: Buffer | None

    def emit_first(self, block: tuple[Expr, Expr]) -> None:
        """The products of the first block, all of its rows or such as are repeated."""
        kernel, rows = self.kernel, self.order.rows
        products = kernel.products(block[1], rows)
        products.begin()
        if self.scratch is not None:
            emit_copy(kernel, self.scratch, rows, block[0])
        products.add(0, kernel.groups, self._reader(rows, block[0])(0))
        self._save(products)

    def emit_block(
        self, block: tuple[Expr, Expr], rows: int, before: tuple[Expr, Expr], new: Expr
    ) -> None:
        """The products of a block of `rows` rows among the results of the one before; `new`:
        whether that had other rows."""
        kernel = self.kernel
        products = kernel.products(block[1], rows)
        products.begin()
        if self.scratch is not None:
            with T.If(new), T.Then():
                emit_copy(kernel, self.scratch, rows, block[0])
        share, rest = divmod(kernel.groups, self.order.rows)
        together = min(share, MOST)
        read = self._reader(rows, block[0])
        with T.serial(self.order.rows) as r:
            first = T.Bind(r * share)
            row = self._row_of(before, r)
            if rows == self.order.rows and self.order.asks:
                self._ask(block[1], block[0] + rows + r)
            with woven() as thread:
                with thread():
                    products.add_unrolled(first, together, read(first))
                with thread():
                    self._store(before, row)
            if share > together:
                products.add(first + together, share - together, read(first + together))
        if rest:
            done = share * self.order.rows
            products.add(done, rest, read(done))
        self._save(products)

    def emit_last(self, block: tuple[Expr, Expr]) -> None:
        """The results of the last block."""
        with T.serial(self.order.rows) as r:
            row = self._row_of(block, r)
            with T.serial(1, annotations={MARK: True}):
                self._store(block, row)

    def _row_of(self, block: tuple[Expr, Expr], r: Expr) -> Expr:
        # Rows past the last one repeat it, and are stored over it.
        return keep(T.min(r, self.order.m - 1 - block[0]))

    def _store(self, block: tuple[Expr, Expr], row: Expr) -> None:
        """The results of a row of a block."""
        sums = self.stash.row(row, self.kernel.isa)
        store_row(self.kernel, sums, block[0] + row, block[1])

    def _save(self, products: Products) -> None:
        products.finish()
        self.stash.save(products.sums, products.isa)

    def _ask(self, panel: Expr, row: Expr) -> None:
        """Bring a row of the next block near, a part of it with every panel of a stretch."""
        kernel, stretch = self.kernel, self.order.stretch
        line = CACHE_LINE * 8 // bits_of(element_of(kernel.x[0, 0]))
        lines = -(-kernel.gemm.k // (line * stretch))
        first = T.Bind(panel % stretch * (lines * line))
        for i in range(lines):
            prefetch(kernel.isa, kernel.x[T.min(row, self.order.m - 1), first + i * line])

    def _reader(self, rows: int, row0: Expr) -> Callable[[Expr | int], Read]:
        """What reads groups of K from a given one on: of a copy, or of x."""
        source, group = self.kernel.x, self.kernel.isa.k_group
        places = list(range(rows))
        if self.scratch is None:
            places = [T.Bind(T.min(row0 + r, self.order.m - 1)) for r in range(rows)]
        else:
            source = self.scratch
        return lambda base: lambda r, k: source[places[r], span((base + k) * group, group)]
