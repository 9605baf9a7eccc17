"""`l2_normalize` on vectors: exact squares, roots and reciprocals of several rows at once."""

from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.ops.l2_normalize import SQUARES, L2Normalize
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    fits32,
    keep,
    limited,
    quotient,
    square_root,
    total,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.layernorm import long_sums, short_sums
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat, typed

SCALARS = ("least", "numerator", "fraction", "zero_point")
"""What the function is given as int64, so that all nodes of a shape share it."""


@dataclass(frozen=True)
class Form:
    """What the generated code depends on."""

    rows: int
    count: int
    x_dtype: str
    dtype: str
    lo: int
    hi: int
    fits: bool
    """Whether the result fits int32 before it saturates."""


def l2_normalize(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an `l2_normalize`; None where it does not fit."""
    node = group.head
    op = node.op
    (x,) = graph.types_of(node)
    if not isinstance(op, L2Normalize) or group.followers:
        return None
    count = x.shape[-1]
    rows = x.size // count
    most = (op.numerator >> op.fraction) + 2
    fits = fits32(-most + op.zero_point, most + op.zero_point)
    form = Form(rows, count, x.dtype, op.dtype, op.lo, op.hi, fits)
    scalars = np.array([getattr(op, name) for name in SCALARS], np.int64)
    return Call(
        "l2_normalize",
        form,
        lambda name: l2_kernel(name, form, isa),
        (As(node.inputs[0], (rows, count)), scalars),
        (rows, count),
        op.dtype,
    )


def l2_kernel(name: str, form: Form, isa: Isa) -> PrimFunc:
    """`name(x [rows, n], scalars int64, out [rows, n])`, parallel over rows; `scalars` are
    `SCALARS`."""
    shape, lanes = (form.rows, form.count), isa.lanes // 2
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, form.x_dtype))
        scalars = T.arg("scalars", T.buffer((len(SCALARS),), "int64"))
        out = T.arg("out", T.buffer(shape, form.dtype))
        scalar = {key: scalars[i] for i, key in enumerate(SCALARS)}
        full, left = divmod(form.rows, lanes)
        with T.parallel(full + (left > 0)) as block:
            first = T.Bind(block * lanes)
            here = lanes if left == 0 else T.Bind(T.min(lanes, form.rows - first))
            squares = T.alloc_buffer((lanes,), "int64", scope="global")
            shifts = T.alloc_buffer((lanes,), "int64", scope="global")
            all_rows = span(0, lanes)
            T.buffer_store(squares, splat(1, "int64", lanes), [all_rows])
            with T.serial(here) as r:
                T.buffer_store(squares, _squares(x, first + r, form, isa), [r])
            T.buffer_store(shifts, splat(scalar["fraction"], "int64", lanes), [all_rows])
            least = splat(scalar["least"], "int64", lanes)
            T.buffer_store(squares, T.max(squares[all_rows], least), [all_rows])
            _emit_octaves(squares, shifts, lanes)
            root = T.Cast(typed("int32", lanes), square_root(squares[all_rows]))
            inverse = T.Cast(typed("int64", lanes), quotient(scalar["numerator"], root))
            T.buffer_store(squares, inverse, [all_rows])
            with T.serial(here) as r:
                factors = (squares[r], shifts[r], scalar["zero_point"])
                _emit_scaled(x, out, first + r, factors, form, isa)
    return builder.get()


def _squares(x: Buffer, row: Expr, form: Form, isa: Isa) -> Expr:
    """The sum of the squares of a row, int64."""
    short = form.x_dtype != "int32"
    dtype, width = ("int16", 2 * isa.lanes) if short else ("int32", isa.lanes)
    acc = T.alloc_buffer((isa.lanes // 2,), "int64", scope="global")
    half = span(0, isa.lanes // 2)
    T.buffer_store(acc, splat(0, "int64", isa.lanes // 2), [half])

    def add(values: Expr) -> None:
        _, squares = (short_sums if short else long_sums)(keep(values), isa)
        T.buffer_store(acc, acc[half] + squares, [half])

    whole = form.count // width
    if whole:
        with T.serial(whole) as i:
            add(as_type(x[row, span(i * width, width)], dtype))
    if form.count % width:
        rest = T.alloc_buffer((width,), dtype, scope="global")
        T.buffer_store(rest, splat(0, dtype, width), [span(0, width)])
        for offset, lanes in pieces(form.count - whole * width, width):
            value = as_type(x[row, span(whole * width + offset, lanes)], dtype)
            T.buffer_store(rest, value, [span(offset, lanes)])
        add(rest[span(0, width)])
    return total(acc[half])


def _emit_octaves(squares: Buffer, shifts: Buffer, lanes: int) -> None:
    """Scale the squares up by the largest 4**e that leaves them below 2**61, take e off `shifts`:
    the bits of e from the highest."""
    at = span(0, lanes)
    for e in (16, 8, 4, 2, 1):
        value, shift = keep(squares[at]), keep(shifts[at])
        small = value < splat(1 << (SQUARES - 2 * e), "int64", lanes)
        larger = value << splat(2 * e, "int64", lanes)
        T.buffer_store(squares, T.Select(small, larger, value), [at])
        less = shift - splat(e, "int64", lanes)
        T.buffer_store(shifts, T.Select(small, less, shift), [at])


def _emit_scaled(
    x: Buffer, out: Buffer, row: Expr, factors: tuple[Expr, ...], form: Form, isa: Isa
) -> None:
    inverse, shift, zero = map(keep, factors)
    half = keep(T.int64(1) << (shift - T.int64(1)))

    def piece(start: Expr | int, lanes: int) -> None:
        value = widen(as_int32(x[row, span(start, lanes)]))
        scaled = ((value * inverse + half) >> shift) + zero
        result = limited(scaled, form.lo, form.hi, form.fits)
        T.buffer_store(out, as_type(result, form.dtype), [row, span(start, lanes)])

    whole = form.count // isa.lanes
    if whole:
        with T.serial(whole) as i:
            piece(i * isa.lanes, isa.lanes)
    for offset, lanes in pieces(form.count - whole * isa.lanes, isa.lanes):
        piece(whole * isa.lanes + offset, lanes)
