"""`row_linear` on the int8 GEMM: rows that have their own scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import LIMITS, IntType
from iqvit.ops.row_linear import FRACTION as BIAS_FRACTION
from iqvit.ops.row_linear import RowLinear
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels import row_scale
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.gemm import gemm_kernel
from iqvit.tvm_backend.kernels.gemm_form import Epilogue, Extra, Gemm
from iqvit.tvm_backend.kernels.gemm_woven import passes_once
from iqvit.tvm_backend.kernels.integers import (
    Wide,
    as_type,
    fits32,
    keep,
    limited,
    madd,
    upper_halves,
    wide_elements,
    wide_order,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.linear import followers_of
from iqvit.tvm_backend.kernels.packing import in_column_order, pack_weights
from iqvit.tvm_backend.kernels.requant import narrow
from iqvit.tvm_backend.kernels.row_scale import given, scale_of
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.stage_form import Stage
from iqvit.tvm_backend.kernels.stages import emit_stages
from iqvit.tvm_backend.kernels.vector import HALVES, clamp, lanes_of, span, splat
from iqvit.tvm_backend.together import Together


def row_linear(graph: IntGraph, group: Group, isa: Isa, scaled: Group | None = None) -> Call | None:
    """The call for a `row_linear`, or several together, and what follows it; None where this kernel
    does not fit. scaled: what scales its rows, if its kernel is to do that as well."""
    node = group.head
    parts = _parts(graph, node)
    followed = followers_of(graph, group, isa)
    if followed is None or not parts or any(op.shift < 1 for op, _ in parts):
        return None
    stages, values = followed
    x = graph[node.inputs[0]].type
    weight, mult = (np.asarray(graph[node.inputs[i]].type.value) for i in (2, 4))
    n, k = weight.shape
    m = math.prod(x.shape[:-1])
    out = group.last.type
    scale = None if scaled is None else scale_of(scaled)
    gemm = Gemm(m, n, k, x.dtype, None, out.dtype, scale)
    if scaled is not None and not passes_once(gemm, isa):
        return None
    forms = [form_of(op, types) for op, types in parts]
    form, width = forms[0][0], n // len(parts)
    alike = all(other == form for other, _ in forms)
    if form is None or not alike or (len(parts) > 1 and (stages or width % isa.panel)):
        return None
    columns, scalars = (np.concatenate(both) for both in zip(*(c for _, c in forms), strict=True))
    narrowed = _narrowed(form, stages, n, out, isa)
    order = "int32" if narrowed is None else out.dtype
    packed = pack_weights(
        weight, np.zeros(n, np.int32), None, signed=x.dtype == "int8", dtype=order, isa=isa
    )
    extras = (
        *([] if scale is not None else [Extra("peak", (m,), "int32")]),
        Extra("row_mult", (n,), "int32"),
        Extra("row_constant", (n,), "int64"),
        Extra("scalars", (scalars.size,), "int64"),
        *(e for i, s in enumerate(stages) for e in s.extras(m, n, f"stage{i}_")),
    )
    epilogue = _rescale(form, stages, narrowed, isa, out.dtype, width, whole=n % isa.panel == 0)
    if form.halved:
        mult = mult | mult << 16
    if n % isa.panel == 0:
        mult, columns = (in_column_order(v, order, isa) for v in (mult, columns))
        columns = columns.reshape(-1, isa.lanes)[:, wide_order(isa.lanes)].reshape(-1)
    first, peak = As(node.inputs[0], (m, k)), As(node.inputs[1], (m,))
    if scaled is not None:
        first, peak = As(scaled.head.inputs[0], (m, k)), given(scaled.head.op)
    fixed = (packed.weight, packed.bias, peak, mult, columns, scalars)
    return Call(
        "_".join(["row_gemm", *(stage.op.NAME for stage in stages)]),
        (gemm, form, tuple(stages), narrowed, width),
        lambda name: gemm_kernel(gemm, isa, name, extras, epilogue),
        (first, *fixed, *values),
        (m, n),
        gemm.out_dtype,
        () if scaled is None else (((m,), "int32"),),
    )


def row_peak(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `row_peak`, and of what scales its rows and multiplies them."""
    if len(group.nodes) < 3:
        return row_scale.row_peak(graph, group, isa)
    scaled = Group(group.head, group.followers[:1])
    return row_linear(graph, Group(group.nodes[2], group.nodes[3:]), isa, scaled)


def _parts(graph: IntGraph, node: Node) -> list[tuple[RowLinear, Sequence[IntType]]]:
    """The operators of a node and their operands' types; none if it is something else."""
    op, types = node.op, graph.types_of(node)
    if isinstance(op, Together):
        return list(zip(op.ops, op.parts(*types), strict=True))
    return [(op, types)] if isinstance(op, RowLinear) else []


@dataclass(frozen=True)
class Form:
    """What the code of the epilogue depends on; its shifts are given to the function."""

    lo: int
    hi: int
    fits: bool
    """Whether the result fits int32 before it saturates."""
    upper: bool
    """Whether the upper halves of the 64-bit sums are enough."""
    raised: bool
    """Whether accumulators are shifted to the left for that."""
    halved: bool
    """Whether peaks fit 16 bits in two halves, and multipliers 16 bits."""


def _narrowed(
    form: Form, stages: list[Stage], n: int, out: IntType, isa: Isa
) -> tuple[int, int] | None:
    """The bounds of results that saturating packs narrow, whole rows of panels at once; None where
    the result is int32, or where columns must come in their order for an operand of theirs."""
    fits = stages[-1].fits if stages else form.fits
    ordered = any(kind in ("full", "channel") for s in stages for kind in s.kinds)
    if out.dtype == "int32" or ordered or not fits or n % isa.panel:
        return None
    return (stages[-1].lo, stages[-1].hi) if stages else (form.lo, form.hi)


def form_of(op: RowLinear, types: Sequence[IntType]) -> tuple[Form | None, list[np.ndarray]]:
    """The form, the constant of every column, and by how much accumulators and sums are shifted;
    None where 64 bits do not hold them.

    Floors within floors are one: `(((p + half) >> s) + b + 128) >> 8` is `(p + constant) >> s + 8`.
    """
    _, peak, _, bias, mult = types
    least, most = op.accumulator(*types)
    acc, factor = max(-least, most), mult.hi * peak.hi
    shift = op.shift + BIAS_FRACTION
    up = max(0, 32 - shift)
    upper = acc << up < 1 << 31
    up = up if upper else 0
    half = 1 << (BIAS_FRACTION - 1)
    constants = (np.asarray(bias.value).astype(object) + half) << op.shift
    constants = constants + (1 << (op.shift - 1)) << up
    ends = max(acc, 1) * factor << up, max(map(abs, constants))
    fits = factor <= LIMITS["int32"][1] and mult.lo >= 0 and sum(ends) < 1 << 63
    if not fits or shift >= 63:
        return None, []
    halved = mult.hi < 1 << 15 and peak.hi < (1 << 16) - 1
    form = Form(op.lo, op.hi, fits32(*op.unsaturated(*types)), upper, up > 0, halved)
    down = shift + up - (32 if upper else 0)
    return form, [constants.astype(np.int64), np.array([up, down], np.int64)]


def _rescale(
    form: Form,
    stages: list[Stage],
    narrowed: tuple[int, int] | None,
    isa: Isa,
    dtype: str,
    width: int,
    *,
    whole: bool,
) -> Epilogue:
    """The epilogue: the row's and the column's factors, the bias, then the followers.

    width: columns that share their scalars; whole: whether all panels are, and the columns'
    constants in the order of `wide_order`.
    """
    if narrowed is not None:  # the packs saturate
        lo, hi = LIMITS["int32"]
        stages = [
            replace(stage, lo=lo, hi=hi) if stage is stages[-1] else stage for stage in stages
        ]
        form = form if stages else replace(form, lo=lo, hi=hi)

    def epilogue(values: list[Expr], m: Expr, n: Expr, extras: tuple[Buffer, ...]) -> list[Expr]:
        peak, mult, constant, scalars = extras[:4]
        results: list[Expr] = []
        part = 0 if scalars.shape[0] == 2 else n // width * 2
        lift, shift = keep(scalars[part]), keep(scalars[part + 1])
        for i, value in enumerate(values):
            lanes = lanes_of(value)
            at = n + i * lanes
            factor = keep(_factor(form, mult[span(at, lanes)], peak[m], isa))
            up = splat(T.Cast("int32", lift), "int32", lanes)
            raised = keep(value << up if form.raised else value)
            sums = widen(raised) * widen(factor)
            sums = sums + wide_elements(constant, at, lanes, ordered=whole)
            results.append(keep(_shifted(form, sums, shift)))
        results = emit_stages(stages, results, m, n, extras[4:], isa)
        if narrowed is not None:
            return [keep(result) for result in narrow(results, dtype, *narrowed, isa)]
        return [keep(as_type(result, dtype)) for result in results]

    return epilogue


def _factor(form: Form, mult: Expr, peak: Expr, isa: Isa) -> Expr:
    """The product of columns' multipliers and a row's peak."""
    lanes = lanes_of(mult)
    if not form.halved:
        return mult * splat(peak, "int32", lanes)
    if lanes < isa.lanes or lanes == HALVES:
        return (mult >> splat(16, "int32", lanes)) * splat(peak, "int32", lanes)
    # m * p = m * (p // 2) + m * (p - p // 2): one instruction, a 32-bit product takes two.
    half = keep(peak >> T.int32(1))
    pair = keep(half | ((peak - half) << T.int32(16)))
    return madd(mult, splat(pair, "int32", lanes), lanes)


def _shifted(form: Form, sums: Wide, shift: Expr) -> Expr:
    """The sums shifted to the right and saturated."""
    if not form.upper:
        return limited(sums >> shift, form.lo, form.hi, form.fits)
    high = upper_halves(sums)
    low = T.Cast("int32", shift)
    return clamp(high >> splat(low, "int32", lanes_of(high)), form.lo, form.hi)
