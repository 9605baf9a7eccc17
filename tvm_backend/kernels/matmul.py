"""`matmul` of two computed values whose sums run along the memory of both (patches x classes)."""

from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.matmul import Matmul
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.integers import (
    as_type,
    fits32,
    keep,
    limited,
    madd,
    total,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, pieces, span, splat
from iqvit.tvm_backend.layout import View, view_of


@dataclass(frozen=True)
class Form:
    """What the generated code depends on: `[m, k] x [n, k]`, where both begin in what they are
    read from and its size, and how far their rows lie apart."""

    m: int
    n: int
    k: int
    sizes: tuple[int, int]
    offsets: tuple[int, int]
    strides: tuple[int, int]
    dtypes: tuple[str, str, str]
    lo: int
    hi: int
    fits: bool
    """Whether the result fits int32 before it saturates."""


def matmul(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `matmul` without batches; None where an operand has its sum across memory."""
    node = group.head
    op = node.op
    a, b = graph.types_of(node)
    if not isinstance(op, Matmul) or group.followers or node.type.size == 1:
        return None
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if a.size != m * k or b.size != k * n:
        return None
    left, right = (view_of(graph, name) for name in node.inputs)
    if left.strides[-1] != 1 or right.strides[-2] != 1:
        return None
    lo, hi = op.accumulator(a, b)
    ends = [(v * op.multiplier >> op.shift) + op.zero_point for v in (lo, hi)]
    fits = fits32(min(ends) - 1, max(ends) + 1) and abs(op.multiplier) <= LIMITS["int32"][1]
    sizes = graph[left.root].type.size, graph[right.root].type.size
    form = Form(
        m,
        n,
        k,
        sizes,
        (left.offset, right.offset),
        (left.strides[-2], right.strides[-1]),
        (a.dtype, b.dtype, op.dtype),
        op.lo,
        op.hi,
        fits,
    )
    half = (1 << op.shift) >> 1
    scalars = np.array([op.multiplier, half, op.shift, op.zero_point], np.int64)
    return Call(
        "matmul",
        form,
        lambda name: matmul_kernel(name, form, isa),
        (*_operands(left, right, sizes), scalars),
        (m, n),
        op.dtype,
    )


def _operands(left: View, right: View, sizes: tuple[int, int]) -> tuple[As, As]:
    return As(left.root, (sizes[0],)), As(right.root, (sizes[1],))


def matmul_kernel(name: str, form: Form, isa: Isa) -> PrimFunc:
    """`name(a, b, scalars int64 [4], out [m, n])`, parallel over rows of a; `scalars` are the
    multiplier, the rounding constant, the shift and the zero point."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        a = T.arg("a", T.buffer((form.sizes[0],), form.dtypes[0]))
        b = T.arg("b", T.buffer((form.sizes[1],), form.dtypes[1]))
        scalars = T.arg("scalars", T.buffer((4,), "int64"))
        out = T.arg("out", T.buffer((form.m, form.n), form.dtypes[2]))
        with T.parallel(form.m) as i:
            sums = T.alloc_buffer((form.n,), "int32", scope="global")
            row = T.Bind(form.offsets[0] + i * form.strides[0])
            with T.serial(form.n) as j:
                column = T.Bind(form.offsets[1] + j * form.strides[1])
                T.buffer_store(sums, _dot(a, row, b, column, form.k, isa), [j])
            for offset, lanes in _parts(form.n, isa.lanes):
                value = widen(sums[span(offset, lanes)])
                scaled = ((value * scalars[0] + scalars[1]) >> scalars[2]) + scalars[3]
                result = limited(scaled, form.lo, form.hi, form.fits)
                T.buffer_store(out, as_type(result, form.dtypes[2]), [i, span(offset, lanes)])
    return builder.get()


def _parts(count: int, lanes: int) -> list[tuple[int, int]]:
    return list(pieces(count, lanes))


def _dot(a: Buffer, row: Expr, b: Buffer, column: Expr, count: int, isa: Isa) -> Expr:
    """The int32 sum of `a[row + k] * b[column + k]`, of 16-bit lanes pair by pair."""
    width = 2 * isa.lanes
    acc = T.alloc_buffer((isa.lanes,), "int32", scope="global")
    lane = span(0, isa.lanes)
    T.buffer_store(acc, splat(0, "int32", isa.lanes), [lane])

    def add(x: Expr, y: Expr) -> None:
        T.buffer_store(acc, acc[lane] + madd(x, y, isa.lanes), [lane])

    whole = count // width
    if whole:
        with T.serial(whole) as i:
            x, y = a[span(row + i * width, width)], b[span(column + i * width, width)]
            add(as_type(x, "int16"), as_type(y, "int16"))
    if count % width:
        rests = [T.alloc_buffer((width,), "int16", scope="global") for _ in range(2)]
        for rest, source, start in zip(rests, (a, b), (row, column), strict=True):
            T.buffer_store(rest, splat(0, "int16", width), [span(0, width)])
            for offset, lanes in pieces(count - whole * width, width):
                value = as_type(source[span(start + whole * width + offset, lanes)], "int16")
                T.buffer_store(rest, value, [span(offset, lanes)])
        add(*(rest[span(0, width)] for rest in rests))
    return keep(total(acc[lane]))
