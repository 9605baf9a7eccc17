"""Rows with their own scale: `row_peak`, `row_quantise`, and `row_linear` on the int8 GEMM."""

import math
from collections.abc import Callable

import numpy as np
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script import builder as T

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.row_linear import FRACTION as BIAS_FRACTION
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import FRACTION, RowQuantise
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.elementwise import Stage
from iqvit.tvm_backend.kernels.gemm import Extra, Gemm, gemm_kernel
from iqvit.tvm_backend.kernels.integers import (
    as_int32,
    as_type,
    joined,
    keep,
    parts_of,
    saturate,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.linear import followers_of
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.vector import (
    function_attributes,
    lanes_of,
    pieces,
    span,
    splat,
)


def row_peak(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_peak`."""
    node = group.head
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, RowPeak):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    return Call(
        "row_peak",
        (op, shape),
        lambda name: peak_kernel(name, op, shape, isa),
        (As(node.inputs[0], shape),),
        (shape[0],),
        "int32",
    )


def peak_kernel(name: str, op: RowPeak, shape: tuple[int, int], isa: Isa) -> PrimFunc:
    """`name(x int16 [rows, n], out int32 [rows])`, parallel over rows."""
    rows, count = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        out = T.arg("out", T.buffer((rows,), "int32"))
        with T.parallel(rows) as m:
            best = T.alloc_buffer((isa.lanes,), "int32", scope="local")
            lane = span(0, isa.lanes)
            T.buffer_store(best, splat(1, "int32", isa.lanes), [lane])

            def piece(start: Expr | int, lanes: int) -> None:
                size = _size(op, as_int32(x[m, span(start, lanes)]))
                T.buffer_store(best, T.max(best[span(0, lanes)], size), [span(0, lanes)])

            _pieces(count, isa, piece)
            T.buffer_store(out, _largest(best[lane]), [m])
    return builder.get()


def _size(op: RowPeak, value: Expr) -> Expr:
    lanes = lanes_of(value)
    if op.one_sided:
        return value - splat(op.offset, "int32", lanes)
    value = keep(value)
    return T.max(value, splat(0, "int32", lanes) - value)


def _largest(value: Expr) -> Expr:
    lanes = lanes_of(value)
    while lanes > 1:
        lanes //= 2
        value = keep(value)
        low = T.Shuffle([value], list(range(lanes)))
        high = T.Shuffle([value], list(range(lanes, 2 * lanes)))
        value = T.max(low, high)
    return value


def _pieces(count: int, isa: Isa, piece: Callable[[Expr | int, int], None]) -> None:
    whole = count // isa.lanes
    if whole:
        with T.serial(whole) as i:
            piece(i * isa.lanes, isa.lanes)
    for offset, lanes in pieces(count - whole * isa.lanes, isa.lanes):
        piece(whole * isa.lanes + offset, lanes)


def row_quantise(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_quantise`."""
    node = group.head
    op, x = node.op, graph[node.inputs[0]].type
    if not isinstance(op, RowQuantise):
        return None
    shape = (x.size // x.shape[-1], x.shape[-1])
    return Call(
        "row_quantise",
        (op, shape),
        lambda name: quantise_kernel(name, op, shape, node.type.dtype, isa),
        (As(node.inputs[0], shape), As(node.inputs[1], (shape[0],))),
        shape,
        node.type.dtype,
    )


def quantise_kernel(
    name: str, op: RowQuantise, shape: tuple[int, int], dtype: str, isa: Isa
) -> PrimFunc:
    """`name(x int16 [rows, n], peak int32 [rows], out [rows, n])`, parallel over rows."""
    rows, count = shape
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer(shape, "int16"))
        peak = T.arg("peak", T.buffer((rows,), "int32"))
        out = T.arg("out", T.buffer(shape, dtype))
        offset = op.offset if op.one_sided else 0
        with T.parallel(rows) as m:
            inverse = keep(T.truncdiv(T.int32(op.levels << FRACTION), peak[m]))

            def piece(start: Expr | int, lanes: int) -> None:
                shifted = as_int32(x[m, span(start, lanes)]) - splat(offset, "int32", lanes)
                product = shifted * splat(inverse, "int32", lanes)
                rounded = product + splat(1 << (FRACTION - 1), "int32", lanes)
                value = rounded >> splat(FRACTION, "int32", lanes)
                T.buffer_store(out, as_type(value, dtype), [m, span(start, lanes)])

            _pieces(count, isa, piece)
    return builder.get()


def row_linear(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call for a `row_linear` and its followers; None where this kernel does not fit."""
    node = group.head
    op = node.op
    if not isinstance(op, RowLinear) or op.shift < 1:
        return None
    followed = followers_of(graph, group)
    if followed is None:
        return None
    stages, values = followed
    x, peak = (graph[name].type for name in node.inputs[:2])
    weight, bias, mult = (np.asarray(graph[name].type.value) for name in node.inputs[2:])
    n, k = weight.shape
    m = math.prod(x.shape[:-1])
    out = group.last.type
    gemm = Gemm(m, n, k, x.dtype, None, out.dtype, x.shape, out.shape)
    packed = pack_weights(
        weight, np.zeros(n, np.int32), None, signed=x.dtype == "int8", dtype="int32", isa=isa
    )
    if peak.hi * int(np.abs(mult).max()) > LIMITS["int32"][1]:
        return None
    ends = op.unsaturated(*graph.types_of(node))
    extras = (
        Extra("peak", (m,), "int32"),
        Extra("row_bias", (n,), "int32"),
        Extra("row_mult", (n,), "int32"),
        *(e for i, s in enumerate(stages) for e in s.extras(m, n, f"stage{i}_")),
    )
    epilogue = _rescale(op, ends, stages, isa, out.dtype)
    return Call(
        "_".join(["row_gemm", *(stage.op.NAME for stage in stages)]),
        (gemm, op, ends, tuple(stages)),
        lambda name: gemm_kernel(gemm, isa, name, extras, epilogue),
        (node.inputs[0], packed.weight, packed.bias, As(node.inputs[1], (m,)), bias, mult, *values),
        out.shape,
        gemm.out_dtype,
    )


def _rescale(
    op: RowLinear, ends: tuple[int, int], stages: list[Stage], isa: Isa, dtype: str
) -> Callable[..., Expr]:
    """The epilogue: the row's and the column's factors, the bias, then the followers."""

    def epilogue(value: Expr, m: Expr, n: Expr, extras: tuple[Buffer, ...]) -> Expr:
        peak, bias, mult = extras[:3]
        results: list[Expr] = []
        for i, part in enumerate(parts_of(value, isa.lanes)):
            at, lanes = n + i * isa.lanes, lanes_of(part)
            factor = keep(mult[span(at, lanes)] * splat(peak[m], "int32", lanes))
            scaled = (widen(keep(part)) * widen(factor)).rounded_shift(op.shift)
            moved = scaled.with_(widen(keep(bias[span(at, lanes)])), lambda a, b: a + b)
            current = saturate(moved.rounded_shift(BIAS_FRACTION), op.lo, op.hi, ends)
            used = 3
            for stage in stages:
                count = len(stage.operands)
                current = stage.emit(current, m, at, extras[used : used + count], isa)
                used += count
            results.append(keep(as_type(current, dtype)))
        return joined(results)

    return epilogue
