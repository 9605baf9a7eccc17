"""Rows that get their own scale: `row_peak` and `row_quantise`, each alone or in one pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.base import Op
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import FRACTION, RowQuantise
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import as_int32, as_type, keep, largest
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat

Read = Callable[[Expr | int, int], Expr]
"""`read(start, lanes)`: int16 elements of a row."""
Write = Callable[[Expr, Expr | int, int], None]
"""`write(value, start, lanes)`: stores elements of a row."""


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


def _given(op: Op) -> np.ndarray:
    return np.array([offset_of(op)], np.int32)


def row_peak(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_peak`, and of the `row_quantise` after it."""
    node, scale = group.head, scale_of(group)
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, RowPeak) or (group.followers and scale is None):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    operands = (As(node.inputs[0], shape), _given(op))
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
    shape, levels = (x.size // x.shape[-1], x.shape[-1]), op.levels
    return Call(
        "row_quantise",
        (levels, shape, node.type.dtype),
        lambda name: quantise_kernel(name, levels, shape, node.type.dtype, isa),
        (As(node.inputs[0], shape), As(node.inputs[1], (shape[0],)), _given(op)),
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
        with T.parallel(rows) as m:

            def read(start: Expr | int, lanes: int) -> Expr:
                return x[m, span(start, lanes)]

            def write(value: Expr, start: Expr | int, lanes: int) -> None:
                T.buffer_store(out, value, [m, span(start, lanes)])

            found = emit_scaled(scale, count, offset[0], read, write, isa)
            T.buffer_store(peak, found, [m])
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


def quantise_kernel(
    name: str, levels: int, shape: tuple[int, int], dtype: str, isa: Isa
) -> PrimFunc:
    """`name(x int16 [rows, n], peak int32 [rows], offset int32 [1], out [rows, n])`, parallel over
    rows."""
    rows, count = shape
    scale = Scale(False, levels, dtype)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        peak = T.arg("peak", T.buffer((rows,), "int32"))
        offset = T.arg("offset", T.buffer((1,), "int32"))
        out = T.arg("out", T.buffer(shape, dtype))
        with T.parallel(rows) as m:

            def read(start: Expr | int, lanes: int) -> Expr:
                return x[m, span(start, lanes)]

            def write(value: Expr, start: Expr | int, lanes: int) -> None:
                T.buffer_store(out, value, [m, span(start, lanes)])

            _emit_quantised(scale, count, peak[m], offset[0], read, write, isa)
    return builder.get()


def emit_scaled(scale: Scale, count: int, offset: Expr, read: Read, write: Write, isa: Isa) -> Expr:
    """Write a row of `count` elements at its own scale; returns its peak."""
    peak = keep(_emit_peak(scale.one_sided, count, offset, read, isa))
    _emit_quantised(scale, count, peak, offset, read, write, isa)
    return peak


def _emit_peak(one_sided: bool, count: int, offset: Expr, read: Read, isa: Isa) -> Expr:
    width = 2 * isa.lanes
    lane = span(0, width)
    most = T.alloc_buffer((width,), "int16", scope="global")
    least = T.alloc_buffer((width,), "int16", scope="global")
    T.buffer_store(most, splat(LIMITS["int16"][0], "int16", width), [lane])
    T.buffer_store(least, splat(LIMITS["int16"][1], "int16", width), [lane])

    def piece(start: Expr | int, lanes: int) -> None:
        value, here = keep(read(start, lanes)), span(0, lanes)
        T.buffer_store(most, T.max(most[here], value), [here])
        if not one_sided:
            T.buffer_store(least, T.min(least[here], value), [here])

    emit_pieces(count, width, piece)
    peak = largest(most[lane])
    if one_sided:
        peak = peak - offset
    else:
        # -1 - least is its size less one, and fits in int16 whatever it is.
        flipped = least[lane] ^ splat(-1, "int16", width)
        peak = T.max(peak, largest(flipped) + 1)
    return T.max(peak, T.int32(1))


def _emit_quantised(
    scale: Scale, count: int, peak: Expr, offset: Expr, read: Read, write: Write, isa: Isa
) -> None:
    inverse = keep(T.truncdiv(T.int32(scale.levels << FRACTION), peak))

    def piece(start: Expr | int, lanes: int) -> None:
        shifted = as_int32(read(start, lanes)) - splat(offset, "int32", lanes)
        product = shifted * splat(inverse, "int32", lanes)
        rounded = product + splat(1 << (FRACTION - 1), "int32", lanes)
        value = rounded >> splat(FRACTION, "int32", lanes)
        write(as_type(value, scale.dtype), start, lanes)

    emit_pieces(count, isa.lanes, piece)


def emit_pieces(count: int, width: int, piece: Callable[[Expr | int, int], None]) -> None:
    """`piece(start, lanes)` for all of a row: vectors of `width` lanes, then smaller ones."""
    whole = count // width
    if whole:
        with T.serial(whole) as i:
            piece(i * width, width)
    for offset, lanes in pieces(count - whole * width, width):
        piece(whole * width + offset, lanes)
