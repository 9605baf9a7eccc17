"""`topk` by radix selection: linear in the row, and no more than the winners are sorted."""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.intgraph import IntGraph
from iqvit.ops.topk import TopK
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import as_int32, keep
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, span, splat

DIGITS = 256
"""Values of a digit: the keys are sorted byte by byte."""


def topk(graph: IntGraph, group: Group, _: Isa) -> Call | None:
    """The call of a `topk`."""
    node = group.head
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, TopK):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    return Call(
        "topk",
        (shape, op.k, x.dtype),
        lambda name: topk_kernel(name, shape, op.k, x.dtype),
        (As(node.inputs[0], shape),),
        (shape[0], op.k),
        "int32",
    )


@dataclass(frozen=True)
class _Row:
    """One row and the state of its selection; every buffer but `x` is the task's own."""

    x: Buffer
    m: Expr
    size: int
    dtype: str
    counts: Buffer
    """How many keys have each digit; then where the next of them goes."""
    prefix: Buffer
    """The digits of the k-th largest key that are known, as the key shifted down to them."""
    left: Buffer
    """How many of the keys with this prefix belong to the k largest."""

    @property
    def digits(self) -> int:
        """Bytes of a key."""
        return int(self.dtype.lstrip("uint")) // 8

    def key(self, j: Expr) -> Expr:
        """Element j of the row, as int32."""
        return keep(as_int32(self.x[self.m, j]))

    def digit(self, key: Expr, d: int) -> Expr:
        """Digit d of a key, 0 the lowest; digits compare as unsigned numbers."""
        shifted = key >> (8 * d)
        if d == self.digits - 1 and not self.dtype.startswith("u"):
            return shifted + DIGITS // 2
        return shifted & (DIGITS - 1)

    def clear(self) -> None:
        """No key counted."""
        T.buffer_store(self.counts, splat(0, "int32", DIGITS), [span(0, DIGITS)])


def topk_kernel(name: str, shape: tuple[int, int], k: int, dtype: str) -> PrimFunc:
    """`name(x [rows, n], out int32 [rows, k])`, parallel over rows.

    The k-th largest key is found digit by digit from the highest, by counting; the winners are
    gathered in the order of their indices and sorted by a radix sort that keeps it among equals.
    """
    rows, size = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, dtype))
        out = T.arg("out", T.buffer((rows, k), "int32"))
        with T.parallel(rows) as m:
            counts, prefix, left = (
                T.alloc_buffer((n,), "int32", scope="global") for n in (DIGITS, 1, 1)
            )
            row = _Row(x, m, size, dtype, counts, prefix, left)
            T.buffer_store(left, T.int32(k), [0])
            for d in reversed(range(row.digits)):
                _emit_counts(row, d)
                _emit_digit(row, d)
            winners, other = (T.alloc_buffer((k,), "int32", scope="global") for _ in range(2))
            _emit_winners(row, winners)
            for d in range(row.digits):
                _emit_sort(row, d, k, winners, other)
                winners, other = other, winners
            with T.serial(k) as i:
                T.buffer_store(out, winners[i], [m, i])
    return builder.get()


def _emit_counts(row: _Row, d: int) -> None:
    """Count digit d of the keys that have the known digits above it."""
    row.clear()
    with T.serial(row.size) as j:
        key = row.key(j)
        if d == row.digits - 1:
            _count(row, row.digit(key, d))
        else:
            with T.If((key >> (8 * (d + 1))) == row.prefix[0]), T.Then():
                _count(row, row.digit(key, d))


def _count(row: _Row, digit: Expr) -> None:
    place = keep(digit)
    T.buffer_store(row.counts, row.counts[place] + 1, [place])


def _emit_digit(row: _Row, d: int) -> None:
    """Digit d of the k-th largest key: the one at which the counts from above reach `left`."""
    found = T.alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(found, T.int32(-1), [0])
    with T.serial(DIGITS) as i:
        digit = DIGITS - 1 - i
        with T.If(found[0] < 0), T.Then(), T.If(row.counts[digit] < row.left[0]):
            with T.Then():
                T.buffer_store(row.left, row.left[0] - row.counts[digit], [0])
            with T.Else():
                T.buffer_store(found, digit, [0])
    if d == row.digits - 1:
        signed = not row.dtype.startswith("u")
        known = found[0] - DIGITS // 2 if signed else found[0]
    else:
        known = (row.prefix[0] << 8) | found[0]
    T.buffer_store(row.prefix, known, [0])


def _emit_winners(row: _Row, winners: Buffer) -> None:
    """The indices of the k largest, ascending: all above the k-th, and the first of those equal."""
    count = T.alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(count, T.int32(0), [0])
    with T.serial(row.size) as j:
        key = row.key(j)
        with T.If(key >= row.prefix[0]), T.Then():
            equal = keep(T.Cast("int32", key == row.prefix[0]))
            with T.If(T.Or(equal == 0, row.left[0] > 0)), T.Then():
                T.buffer_store(winners, T.Cast("int32", j), [count[0]])
                T.buffer_store(count, count[0] + 1, [0])
                T.buffer_store(row.left, row.left[0] - equal, [0])


def _emit_sort(row: _Row, d: int, k: int, source: Buffer, to: Buffer) -> None:
    """Order the winners by digit d, the largest first; equals keep their order."""
    row.clear()

    def each(action: Callable[[Expr, Expr], None]) -> None:
        with T.serial(k) as i:
            index = keep(source[i])
            action(index, keep(row.digit(row.key(index), d)))

    each(lambda _, digit: _count(row, digit))
    place = T.alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(place, T.int32(0), [0])
    with T.serial(DIGITS) as i:
        count = keep(row.counts[DIGITS - 1 - i])
        T.buffer_store(row.counts, place[0], [DIGITS - 1 - i])
        T.buffer_store(place, place[0] + count, [0])

    def move(index: Expr, digit: Expr) -> None:
        T.buffer_store(to, index, [row.counts[digit]])
        _count(row, digit)

    each(move)
