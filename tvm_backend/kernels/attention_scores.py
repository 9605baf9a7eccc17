"""The first half of `attention`: products of queries and keys, and what they are exponentiated to:
the unnormalised probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

from iqvit.ops.exp2 import full_scale
from iqvit.tvm_backend.kernels.attention_form import TURN, Kernel
from iqvit.tvm_backend.kernels.exponential import (
    Exp2Scalars,
    emit_bytes_of_words,
    emit_exp2_packed,
    emit_words,
)
from iqvit.tvm_backend.kernels.instructions import prefetch
from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.interleave import woven
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import span, splat

LEAST = -(2**31)


@dataclass(frozen=True)
class Scores:
    """The products of a vector of queries with all keys, their probabilities and the sums of these.

    A buffer of products `[keys, lanes]` holds those of the next queries where the ones before have
    been read.
    """

    kernel: Kernel
    keys: Buffer
    fold: Buffer
    products: Buffer
    top: Buffer
    """The largest product of every query."""
    weights: Buffer
    """Probabilities as groups along keys, `[groups, lanes]`."""
    sums: Buffer

    @staticmethod
    def of(kernel: Kernel, keys: tuple[Buffer, Buffer]) -> "Scores":
        """Buffers without values. keys: as `emit_keys` gives them."""
        groups = -(-kernel.keys // kernel.isa.group)
        shapes = ((kernel.keys,), (), (groups,), ())
        buffers = (
            T.alloc_buffer((*shape, kernel.lanes), "int32", scope="global") for shape in shapes
        )
        return Scores(kernel, *keys, *buffers)

    @property
    def _lane(self) -> Expr:
        return span(0, self.kernel.lanes)

    def emit_products(self, packed: Buffer) -> None:
        """The products of queries, as `emit_queries` gives them, with all keys."""
        kernel = self.kernel
        T.buffer_store(self.top, splat(LEAST, "int32", kernel.lanes), [self._lane])
        whole, left = divmod(kernel.keys, kernel.block)
        with T.serial(whole) as step:
            self._emit_some(packed, step * kernel.block, kernel.block, self.top)
        if left:
            self._emit_some(packed, whole * kernel.block, left, self.top)

    def emit_weights(self) -> None:
        """The probabilities of the products, and their sums."""
        exp, group = self._begin_weights(), self.kernel.isa.group
        whole, left = divmod(self.kernel.keys, group)
        with T.serial(whole) as place:
            self._weigh(exp, place, group)
        if left:
            self._weigh(exp, whole, left)

    def emit_woven(self, packed: Buffer) -> None:
        """The same, among the products of the next queries, which take their place."""
        kernel, group = self.kernel, self.kernel.isa.group
        exp, each = self._begin_weights(), TURN // group
        share, rest = divmod(kernel.problem.depth // group, each)
        (top,) = accumulators(kernel, [LEAST])
        with T.serial(kernel.keys // TURN) as turn:
            start = turn * TURN
            acc = self._accumulators(start, TURN)
            with T.serial(each) as i:
                prefetch(kernel.isa, self.keys[start + TURN + i * group, 0])
                words = emit_words(exp, self._differences(turn * each + i, group), kernel.isa)
                with woven() as thread:
                    with thread():
                        for g in range(share):
                            self._multiply(packed, i * share + g, start, acc)
                    with thread():
                        self._keep_weights(turn * each + i, emit_bytes_of_words(words))
            for g in range(rest):
                self._multiply(packed, each * share + g, start, acc)
            self._store(start, acc, top)
        T.buffer_store(self.top, top[self._lane], [self._lane])

    def _emit_some(self, packed: Buffer, start: Expr | int, count: int, top: Buffer) -> None:
        """The products with `count` keys from `start`, and the largest so far."""
        kernel = self.kernel
        acc = self._accumulators(start, count)
        with T.serial(kernel.problem.depth // kernel.isa.group) as g:
            prefetch(kernel.isa, self.keys[start + kernel.block + g, 0])
            self._multiply(packed, g, start, acc)
        self._store(start, acc, top)

    def _accumulators(self, start: Expr | int, count: int) -> list[Buffer]:
        kernel = self.kernel
        return accumulators(
            kernel, [0 if kernel.signed else self.fold[start + j] for j in range(count)]
        )

    def _multiply(
        self, packed: Buffer, g: Expr | int, start: Expr | int, acc: Sequence[Buffer]
    ) -> None:
        left = keep(packed[g, self._lane])
        for j, sums in enumerate(acc):
            right = T.broadcast(self.keys[start + j, g], self.kernel.lanes)
            T.buffer_store(sums, self.kernel.dot(sums[self._lane], left, right), [self._lane])

    def _store(self, start: Expr | int, acc: Sequence[Buffer], top: Buffer) -> None:
        for j, sums in enumerate(acc):
            T.buffer_store(self.products, sums[self._lane], [start + j, self._lane])
            T.buffer_store(top, T.max(top[self._lane], sums[self._lane]), [self._lane])

    def _begin_weights(self) -> Exp2Scalars:
        kernel = self.kernel
        # Where 128 is taken off every probability, the sums begin with what that takes off them.
        begin = 128 * kernel.isa.group * kernel.groups if kernel.lowers else 0
        T.buffer_store(self.sums, splat(begin, "int32", kernel.lanes), [self._lane])
        return Exp2Scalars(*(keep(T.Cast("int32", kernel.scalars[i])) for i in range(4)))

    def _differences(self, group: Expr | int, members: int) -> list[Expr]:
        first = group * self.kernel.isa.group
        return [
            self.top[self._lane] - self.products[first + member, self._lane]
            for member in range(members)
        ]

    def _weigh(self, exp: Exp2Scalars, group: Expr | int, members: int) -> None:
        """The probabilities of one group of keys."""
        kernel, problem = self.kernel, self.kernel.problem
        differences = self._differences(group, members)
        full = full_scale(problem.bits)
        words = problem.words
        packed = emit_exp2_packed(exp, differences, full, kernel.bits, kernel.isa, words=words)
        self._keep_weights(group, packed)

    def _keep_weights(self, group: Expr | int, packed: Expr) -> None:
        kernel, lane = self.kernel, self._lane
        if kernel.lowers:
            packed = packed ^ splat(T.int32(-0x7F7F7F80), "int32", kernel.lanes)
        packed = keep(packed)
        T.buffer_store(self.weights, packed, [group, lane])
        ones = splat(
            sum(1 << i * kernel.bits for i in range(kernel.isa.group)), "int32", kernel.lanes
        )
        T.buffer_store(self.sums, kernel.dot(self.sums[lane], packed, ones), [lane])


def accumulators(kernel: Kernel, begin: Sequence[Expr | int]) -> list[Buffer]:
    """A vector each, all of its lanes as they begin."""
    lanes = kernel.lanes
    buffers = [T.alloc_buffer((lanes,), "int32", scope="global") for _ in begin]
    for buffer, value in zip(buffers, begin, strict=True):
        T.buffer_store(buffer, splat(value, "int32", lanes), [span(0, lanes)])
    return buffers
