"""The products of one register block of a GEMM: rows of activations against a panel of weights.

By `dot` a vector of sums is a row's `lanes` columns. A matrix instruction gives 2 x 2 lanes: while
products are added, a pair of rows holds its columns two by two, and is put in order afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.tvm_backend.kernels.instructions import matrix_product, weight_dot
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import lanes_of, span, typed

Read = Callable[[int, Expr], Expr]
"""`read(row, k)`: the activations of one group of a block's row, numbered from its run's start."""


@dataclass(frozen=True)
class Products:
    """The sums of a block: a buffer `[vectors, lanes]` a row, which LLVM keeps in registers."""

    isa: Isa
    weight: Buffer
    bias: Buffer
    panel: Expr
    sums: list[Buffer]
    """As many as rows, a multiple of `isa.tile`; those of a row only after `finish`."""

    def begin(self) -> None:
        """Let the sums begin with the biases of their columns."""
        isa = self.isa
        lane = span(0, isa.lanes)
        for j in range(isa.vectors):
            bias = T.Bind(self.bias[self.panel, j, lane])
            starts = [bias]
            if isa.tile == 2:
                starts = [T.Bind(T.Shuffle([bias], [i, i + 1, i, i + 1])) for i in (0, 2)]
            for r, row in enumerate(self.sums):
                T.buffer_store(row, starts[r % isa.tile], [j, lane])

    def add(self, first: Expr | int, groups: int, read: Read) -> None:
        """Add the products of `groups` groups of K, from the weights' group `first` on."""
        unroll = self.isa.unroll
        whole, odd = divmod(groups, unroll)
        if whole:
            with T.serial(whole) as step:
                for u in range(unroll):
                    self._group(first, step * unroll + u, read)
        for u in range(odd):
            self._group(first, T.int32(whole * unroll + u), read)

    def add_unrolled(self, first: Expr | int, groups: int, read: Read) -> None:
        """The same without a loop."""
        for u in range(groups):
            self._group(first, T.int32(u), read)

    def finish(self) -> None:
        """Put the sums of every row in the order of its columns."""
        isa = self.isa
        lane = span(0, isa.lanes)
        if isa.tile == 1:
            return
        for upper, lower in zip(self.sums[::2], self.sums[1::2], strict=True):
            for j in range(isa.vectors):
                left, right = T.Bind(upper[j, lane]), T.Bind(lower[j, lane])
                T.buffer_store(upper, T.Shuffle([left, right], [0, 1, 4, 5]), [j, lane])
                T.buffer_store(lower, T.Shuffle([left, right], [2, 3, 6, 7]), [j, lane])

    def _group(self, first: Expr | int, k: Expr, read: Read) -> None:
        if self.isa.tile == 2:
            self._pairs(first, k, read)
        else:
            self._rows(first, k, read)

    def _rows(self, first: Expr | int, k: Expr, read: Read) -> None:
        isa = self.isa
        lane = span(0, isa.lanes)
        operands = typed(isa.stored, isa.slots)
        parts = 2 if isa.widens else 1
        weights = [self._weights(first + k, j, parts) for j in range(isa.vectors)]
        for r, row in enumerate(self.sums):
            spread = T.broadcast(T.reinterpret("int32", read(r, k)), isa.lanes)
            value = T.Bind(T.reinterpret(operands, spread))
            for j in range(isa.vectors):
                T.buffer_store(row, weight_dot(isa, row[j, lane], value, weights[j]), [j, lane])

    def _weights(self, group: Expr, j: int, parts: int) -> list[Expr]:
        """The weights of a vector of columns and a group of K, in equal parts."""
        width = self.isa.group_weights // parts
        at = (span(part * width, width) for part in range(parts))
        return [T.Bind(self.weight[self.panel, group, j, place]) for place in at]

    def _pairs(self, first: Expr | int, k: Expr, read: Read) -> None:
        isa = self.isa
        lane = span(0, isa.lanes)
        pairs = [
            T.Bind(T.Shuffle([_signed(read(r + i, k)) for i in (0, 1)], list(range(isa.slots))))
            for r in range(0, len(self.sums), 2)
        ]
        for j in range(isa.vectors):
            for half, weight in enumerate(self._weights(first + k, j, 2)):
                for pair, rows in zip(pairs, self.sums[half::2], strict=True):
                    value = matrix_product(isa, rows[j, lane], pair, weight)
                    T.buffer_store(rows, value, [j, lane])


def _signed(value: Expr) -> Expr:
    """Bytes as LLVM's intrinsics take them."""
    return T.reinterpret(typed("int8", lanes_of(value)), value)
