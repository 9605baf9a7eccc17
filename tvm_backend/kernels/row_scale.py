"""Rows that get their own scale: `row_peak` and `row_quantise`, each alone or in one pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.ops.base import Op
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import FRACTION, RowQuantise
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.balance import even_tasks
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.instructions import high_product
from iqvit.tvm_backend.kernels.integers import as_int32, as_type, keep, largest
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    HALVES,
    element_of,
    function_attributes,
    limits,
    pieces,
    span,
    splat,
    typed,
)

Read = Callable[[Expr | int, int], Expr]
"""`read(start, lanes)`: int16 elements of a row."""
Write = Callable[[Expr, Expr | int, int], None]
"""`write(value, start, lanes)`: stores elements of a row."""
ROWS = 16
"""The most rows of which all peaks are found before the first is scaled."""
BATCH = 16 * 1024
"""Bytes of such rows, which L1 holds in between."""


@dataclass(frozen=True)
class Rows:
    """Rows that are scaled together: how their elements are read, and where those of row r go."""

    count: int
    offset: Expr
    read: Callable[[Expr], Read]
    write: Callable[[Expr], Write]


@dataclass(frozen=True)
class Scale:
    """How a row is scaled, as `row_peak` and `row_quantise` say; the offset is given."""

    one_sided: bool
    levels: int
    dtype: str


def scale_of(group: Group) -> Scale | None:
    """The scaling that ends the group: its last two nodes scale what comes before them."""
    peak, last = group.nodes[-2:] if len(group.nodes) > 1 else (None, None)
    if peak is None or last is None:
        return None
    if not isinstance(peak.op, RowPeak) or not isinstance(last.op, RowQuantise):
        return None
    same = (peak.op.one_sided, peak.op.offset) == (last.op.one_sided, last.op.offset)
    if not same or last.inputs != (*peak.inputs, peak.name):
        return None
    return Scale(bool(last.op.one_sided), last.op.levels, last.type.dtype)


def offset_of(op: Op) -> int:
    """What is taken off a row before it is scaled."""
    return op.offset if isinstance(op, (RowPeak, RowQuantise)) and op.one_sided else 0


def given(op: Op) -> np.ndarray:
    """What kernels are given of the operator: the offset."""
    return np.array([offset_of(op)], np.int32)


def row_peak(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_peak`, and of the `row_quantise` after it."""
    node, scale = group.head, scale_of(group)
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, RowPeak) or (group.followers and scale is None):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    operands = (As(node.inputs[0], shape), given(op))
    if scale is not None:
        return Call(
            "row_scale",
            (scale, shape),
            lambda name: scale_kernel(name, scale, shape, isa),
            operands,
            shape,
            scale.dtype,
            also=(((shape[0],), "int32"),),
        )
    one_sided = bool(op.one_sided)
    return Call(
        "row_peak",
        (one_sided, shape),
        lambda name: peak_kernel(name, one_sided, shape, isa),
        operands,
        (shape[0],),
        "int32",
    )


def row_quantise(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_quantise` whose peaks are there."""
    node = group.head
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, RowQuantise):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    scale = Scale(bool(op.one_sided), op.levels, node.type.dtype)
    return Call(
        "row_quantise",
        (scale, shape),
        lambda name: quantise_kernel(name, scale, shape, isa),
        (As(node.inputs[0], shape), As(node.inputs[1], (shape[0],)), given(op)),
        shape,
        node.type.dtype,
    )


def scale_kernel(name: str, scale: Scale, shape: tuple[int, int], isa: Isa) -> PrimFunc:
    """`name(x int16 [rows, n], offset int32 [1], out [rows, n], peak int32 [rows])`, parallel over
    rows."""
    rows, count = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        offset = T.arg("offset", T.buffer((1,), "int32"))
        out = T.arg("out", T.buffer(shape, scale.dtype))
        peak = T.arg("peak", T.buffer((rows,), "int32"))
        tasks = even_tasks(rows, batch_of(count))
        with T.parallel(tasks) as task:
            first, end = (T.Bind((task + i) * rows // tasks) for i in (0, 1))
            here = _rows_of(x, out, offset, first)
            emit_scaled(
                scale,
                here,
                end - first,
                lambda r, found: T.buffer_store(peak, found, [first + r]),
                isa,
            )
    return builder.get()


def peak_kernel(name: str, one_sided: bool, shape: tuple[int, int], isa: Isa) -> PrimFunc:
    """`name(x int16 [rows, n], offset int32 [1], out int32 [rows])`, parallel over rows."""
    rows, count = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        offset = T.arg("offset", T.buffer((1,), "int32"))
        out = T.arg("out", T.buffer((rows,), "int32"))
        with T.parallel(rows) as m:

            def read(start: Expr | int, lanes: int) -> Expr:
                return x[m, span(start, lanes)]

            T.buffer_store(out, _emit_peak(one_sided, count, offset[0], read, isa), [m])
    return builder.get()


def quantise_kernel(name: str, scale: Scale, shape: tuple[int, int], isa: Isa) -> PrimFunc:
    """`name(x int16 [rows, n], peak int32 [rows], offset int32 [1], out [rows, n])`, parallel over
    rows."""
    rows = shape[0]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        peak = T.arg("peak", T.buffer((rows,), "int32"))
        offset = T.arg("offset", T.buffer((1,), "int32"))
        out = T.arg("out", T.buffer(shape, scale.dtype))
        with T.parallel(rows) as m:
            here = _rows_of(x, out, offset, T.int32(0))
            _emit_quantised(scale, here, _inverse(scale, peak[m]), m, isa)
    return builder.get()


def _rows_of(x: Buffer, out: Buffer, offset: Buffer, first: Expr) -> Rows:
    """Those from row `first` of a kernel's input on."""

    def read(r: Expr) -> Read:
        return lambda start, lanes: x[first + r, span(start, lanes)]

    def write(r: Expr) -> Write:
        return lambda value, start, lanes: T.buffer_store(
            out, value, [first + r, span(start, lanes)]
        )

    return Rows(int(x.shape[1]), keep(offset[0]), read, write)


def batch_of(count: int) -> int:
    """How many rows of `count` int16 elements are scaled together."""
    return max(1, min(ROWS, BATCH // (2 * count)))


def emit_scaled(
    scale: Scale, rows: Rows, here: Expr | int, store: Callable[[Expr, Expr], None], isa: Isa
) -> None:
    """Write `here` rows, at most `ROWS`, each at its own scale, and `store(r, peak)` of each.

    All peaks first: finding one is a chain of steps, which those of the next rows hide.
    """
    inverses = T.alloc_buffer((ROWS,), "int32", scope="global")
    with T.serial(here) as r:
        peak = keep(_emit_peak(scale.one_sided, rows.count, rows.offset, rows.read(r), isa))
        store(r, peak)
        T.buffer_store(inverses, _inverse(scale, peak), [r])
    with T.serial(here) as r:
        _emit_quantised(scale, rows, inverses[r], r, isa)


def _inverse(scale: Scale, peak: Expr) -> Expr:
    return T.truncdiv(T.int32(scale.levels << FRACTION), peak)


def _emit_peak(one_sided: bool, count: int, offset: Expr, read: Read, isa: Isa) -> Expr:
    width = 2 * isa.lanes
    lane = span(0, width)
    # The size of -2**15 is a number without a sign.
    dtype = "int16" if one_sided else "uint16"
    most = T.alloc_buffer((width,), dtype, scope="global")
    T.buffer_store(most, splat(limits(dtype)[0], dtype, width), [lane])

    def piece(start: Expr | int, lanes: int) -> None:
        value, here = keep(read(start, lanes)), span(0, lanes)
        if not one_sided:
            size = keep(T.max(value, splat(0, "int16", lanes) - value))
            value = T.reinterpret(typed("uint16", lanes), size)
        T.buffer_store(most, T.max(most[here], value), [here])

    emit_pieces(count, width, piece)
    peak = largest(most[lane])
    return T.max(peak - offset if one_sided else peak, T.int32(1))


def _emit_quantised(scale: Scale, rows: Rows, factor: Expr, r: Expr, isa: Isa) -> None:
    read, write, inverse = rows.read(r), rows.write(r), keep(factor)
    words = None if isa.lanes == HALVES else Words.of(scale, rows.offset, inverse, isa)

    def piece(start: Expr | int, lanes: int) -> None:
        if words is not None and lanes >= words.lanes:
            places = range(0, lanes, words.lanes)
            write(words.bytes_of([read(start + i, words.lanes) for i in places]), start, lanes)
            return
        value = as_int32(read(start, lanes))
        shifted = value - splat(rows.offset, "int32", lanes) if scale.one_sided else value
        product = shifted * splat(inverse, "int32", lanes)
        rounded = product + splat(1 << (FRACTION - 1), "int32", lanes)
        value = rounded >> splat(FRACTION, "int32", lanes)
        write(as_type(value, scale.dtype), start, lanes)

    emit_pieces(rows.count, isa.lanes if words is None else 2 * words.lanes, piece)


@dataclass(frozen=True)
class Words:
    """The scaling of a row in 16-bit lanes, twice as many as of 32 bits.

    With `2 * inverse = upper * 2**16 + lower`, `x * inverse + 2**22 >> 23` is the upper byte of
    `x * upper + (x * lower >> 16) + 2**7` modulo 2**16: what rounds has no bits below 2**16.
    """

    scale: Scale
    isa: Isa
    offset: Expr
    upper: Expr
    lower: Expr

    @staticmethod
    def of(scale: Scale, offset: Expr, inverse: Expr, isa: Isa) -> "Words":
        """That of a row by its `inverse`, int32."""
        # x less the offset and the lower half have no sign where the result has none.
        kind = "uint16" if scale.one_sided else "int16"
        twice = keep(T.Cast("int64", inverse) << T.int64(1))
        lower = keep(T.Cast(kind, twice & T.int64(0xFFFF)))
        upper = keep(T.Cast(kind, (twice - T.Cast("int64", lower)) >> T.int64(16)))
        return Words(scale, isa, keep(T.Cast(kind, offset)), upper, lower)

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return 2 * self.isa.lanes

    def bytes_of(self, values: list[Expr]) -> Expr:
        """The results of vectors of int16 that follow each other."""
        dtype = self.scale.dtype
        if len(values) == 1:
            return T.Cast(typed(dtype, self.lanes), self._words(values[0]) >> self._const(8))
        parts = [T.reinterpret(typed("int8", 2 * self.lanes), self._words(v)) for v in values]
        upper = T.Shuffle(parts, list(range(1, 4 * self.lanes, 2)))
        return T.reinterpret(typed(dtype, 2 * self.lanes), upper)

    def _const(self, value: int | Expr) -> Expr:
        return splat(value, element_of(self.lower), self.lanes)

    def _words(self, value: Expr) -> Expr:
        value = T.reinterpret(typed(element_of(self.lower), self.lanes), value)
        if self.scale.one_sided:
            value = keep(value - self._const(self.offset))
        high = high_product(value, self._const(self.lower))
        return keep(value * self._const(self.upper) + high + self._const(1 << 7))


def emit_pieces(count: int, width: int, piece: Callable[[Expr | int, int], None]) -> None:
    """`piece(start, lanes)` for all of a row: vectors of `width` lanes, then smaller ones."""
    whole = count // width
    if whole:
        with T.serial(whole) as i:
            piece(i * width, width)
    for offset, lanes in pieces(count - whole * width, width):
        piece(whole * width + offset, lanes)
