"""`row_linear` on the int8 GEMM: rows that have their own scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS, IntType
from iqvit.ops.row_linear import FRACTION as BIAS_FRACTION
from iqvit.ops.row_linear import RowLinear
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.gemm import Extra, Gemm, gemm_kernel
from iqvit.tvm_backend.kernels.integers import (
    Wide,
    as_type,
    fits32,
    joined,
    keep,
    limited,
    narrow,
    parts_of,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.linear import followers_of
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.script import Buffer, Expr
from iqvit.tvm_backend.kernels.stages import Stage
from iqvit.tvm_backend.kernels.vector import (
    clamp,
    lanes_of,
    span,
    splat,
)


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
    gemm = Gemm(m, n, k, x.dtype, None, out.dtype)
    packed = pack_weights(
        weight, np.zeros(n, np.int32), None, signed=x.dtype == "int8", dtype="int32", isa=isa
    )
    if peak.hi * int(np.abs(mult).max()) > LIMITS["int32"][1]:
        return None
    form = _Form(op.lo, op.hi, *_fits(op, graph.types_of(node)))
    extras = (
        Extra("peak", (m,), "int32"),
        Extra("row_bias", (n,), "int32"),
        Extra("row_mult", (n,), "int32"),
        Extra("scalars", (2,), "int64"),
        *(e for i, s in enumerate(stages) for e in s.extras(m, n, f"stage{i}_")),
    )
    epilogue = _rescale(form, stages, isa, out.dtype)
    scalars = np.array([(1 << op.shift) >> 1, op.shift], np.int64)
    fixed = (packed.weight, packed.bias, As(node.inputs[1], (m,)), bias, mult, scalars)
    return Call(
        "_".join(["row_gemm", *(stage.op.NAME for stage in stages)]),
        (gemm, form, tuple(stages)),
        lambda name: gemm_kernel(gemm, isa, name, extras, epilogue),
        (As(node.inputs[0], (m, k)), *fixed, *values),
        (m, n),
        gemm.out_dtype,
    )


@dataclass(frozen=True)
class _Form:
    """What the code of the epilogue depends on; its shift is given to the function."""

    lo: int
    hi: int
    fine: bool
    """Whether the result fits int32 with its fractional bits, before it saturates."""
    fits: bool
    """Whether it does so without."""


def _fits(op: RowLinear, types: list[IntType]) -> tuple[bool, bool]:
    lo, hi = op.unsaturated(*types)
    # The bounds of the rounded result, in units of its fraction, hold the unrounded one.
    fine = fits32((lo - 1) << BIAS_FRACTION, (hi + 1) << BIAS_FRACTION)
    bias = types[3]
    room = fits32(((lo - 1) << BIAS_FRACTION) - bias.hi, ((hi + 1) << BIAS_FRACTION) - bias.lo)
    return fine and room, fits32(lo, hi)


def _rescale(form: _Form, stages: list[Stage], isa: Isa, dtype: str) -> Callable[..., Expr]:
    """The epilogue: the row's and the column's factors, the bias, then the followers."""

    def epilogue(value: Expr, m: Expr, n: Expr, extras: tuple[Buffer, ...]) -> Expr:
        peak, bias, mult, scalars = extras[:4]
        results: list[Expr] = []
        for i, part in enumerate(parts_of(value, isa.lanes)):
            at, lanes = n + i * isa.lanes, lanes_of(part)
            factor = keep(mult[span(at, lanes)] * splat(peak[m], "int32", lanes))
            scaled = (widen(keep(part)) * widen(factor) + scalars[0]) >> scalars[1]
            current = _with_bias(form, scaled, keep(bias[span(at, lanes)]))
            used = 4
            for stage in stages:
                count = len(stage.operands)
                current = stage.emit(current, m, at, extras[used : used + count], isa)
                used += count
            results.append(keep(as_type(current, dtype)))
        return joined(results)

    return epilogue


def _with_bias(form: _Form, scaled: Wide, bias: Expr) -> Expr:
    """The bias added, the fraction rounded off, the result saturated."""
    if not form.fine:
        moved = (scaled + widen(bias)).rounded_shift(BIAS_FRACTION)
        return limited(moved, form.lo, form.hi, form.fits)
    lanes = lanes_of(bias)
    half = splat(1 << (BIAS_FRACTION - 1), "int32", lanes)
    rounded = (narrow(scaled) + bias + half) >> splat(BIAS_FRACTION, "int32", lanes)
    return clamp(rounded, form.lo, form.hi)
