"""`attention` on vectors: one lane a query, so that maxima, exponentials and sums stay in lanes.

    s[j, i] = sum_d q[i, d] * k[j, d]          dot products, k broadcast, q packed by lanes
    p[j, i] = full * 2**-t(max_j s - s)        in int32 lanes, stored as the next operand
    a[e, i] = sum_j p[j, i] * v[j, e]          dot products, v broadcast
    out[i, e] = clamp((a * (numerator // sum_j p) + offset + half) >> shift)

q, k, v and the result are read and written where they lie: any strides of head and token.
"""

import math
from collections.abc import Sequence

from iqvit.ops.exp2 import full_scale
from iqvit.tvm_backend.kernels.attention_form import SCALARS, Kernel, Problem
from iqvit.tvm_backend.kernels.attention_operands import emit_keys, emit_queries, emit_values
from iqvit.tvm_backend.kernels.exponential import Exp2Scalars, emit_exp2_packed
from iqvit.tvm_backend.kernels.instructions import prefetch
from iqvit.tvm_backend.kernels.integers import (
    keep,
    limited,
    quotient,
    transposed,
    uniform_products,
    upper_halves,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    bits_of,
    clamp,
    function_attributes,
    pieces,
    span,
    splat,
    typed,
)

AHEAD = 4
"""Groups of keys by which values are asked for before they are read."""
MIN_TASKS = 6
"""Tasks that an attention is cut into, so that threads share it evenly; each packs its keys."""


def attention_kernel(name: str, problem: Problem, isa: Isa) -> PrimFunc:
    """`name(*roots int8 [rows, n], scalars int64, out [rows, n])`, parallel over heads, queries."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        shapes = problem.shapes
        roots = [T.arg(f"x{i}", T.buffer(shape, "int8")) for i, shape in enumerate(shapes)]
        scalars = T.arg("scalars", T.buffer((len(SCALARS),), "int64"))
        rows = T.arg("out", T.buffer(problem.out_shape, problem.dtype))
        inputs = tuple(
            T.decl_buffer((math.prod(shape),), "int8", data=root.data)
            for root, shape in zip(roots, shapes, strict=True)
        )
        out = T.decl_buffer((math.prod(problem.out_shape),), problem.dtype, data=rows.data)
        kernel = Kernel(problem, isa, inputs, scalars, out)
        blocks = -(-problem.queries // isa.lanes)
        parts = min(blocks, -(-MIN_TASKS // problem.heads))
        share = -(-blocks // parts)
        with T.parallel(problem.heads * parts) as task:
            head = T.Bind(task // parts)
            first = T.Bind(task % parts * share)
            keys, fold = emit_keys(kernel, head)
            values = emit_values(kernel, head)
            with T.serial(T.min(share, blocks - first)) as step:
                query = T.Bind((first + step) * isa.lanes)
                _emit_block(kernel, head, query, (keys, fold), values)
    return builder.get()


def _emit_block(
    kernel: Kernel,
    head: Expr,
    query: Expr,
    packed_keys: tuple[Buffer, Buffer],
    values: tuple[Buffer, Buffer],
) -> None:
    """The results of one vector of queries."""
    problem, lanes = kernel.problem, kernel.lanes
    keys, fold = packed_keys
    lane = span(0, lanes)
    packed = emit_queries(kernel, head, query)
    scores = T.alloc_buffer((problem.keys, lanes), "int32", scope="global")
    top = T.alloc_buffer((lanes,), "int32", scope="global")
    T.buffer_store(top, splat(-(2**31), "int32", lanes), [lane])
    whole, left = divmod(problem.keys, kernel.block)
    with T.serial(whole) as step:
        _emit_scores(kernel, (step * kernel.block, kernel.block), packed, keys, fold, scores, top)
    if left:
        _emit_scores(kernel, (whole * kernel.block, left), packed, keys, fold, scores, top)
    weights, sums = _emit_weights(kernel, scores, top)
    inverse = keep(quotient(kernel.scalar("numerator"), sums))
    results = T.alloc_buffer((problem.width // _per_lane(problem), lanes), "int32", scope="global")
    for offset in range(0, problem.width, kernel.block):
        count = min(kernel.block, problem.width - offset)
        acc = _emit_weighted(kernel, offset, count, weights, values)
        _emit_results(kernel, offset, count, acc, inverse, results)
    _emit_out(kernel, head, query, results)


def _emit_scores(
    kernel: Kernel,
    block: tuple[Expr | int, int],
    packed: Buffer,
    keys: Buffer,
    fold: Buffer,
    scores: Buffer,
    top: Buffer,
) -> None:
    """The products of the queries with `count` keys from `start`, and the largest so far."""
    start, count = block
    lanes = kernel.lanes
    lane = span(0, lanes)
    begin = [0 if kernel.signed else fold[start + j] for j in range(count)]
    acc = _accumulators(kernel, begin)
    with T.serial(kernel.problem.depth // kernel.isa.group) as g:
        left = keep(packed[g, lane])
        prefetch(kernel.isa, keys[start + kernel.block + g, 0])
        for j in range(count):
            right = T.broadcast(keys[start + j, g], lanes)
            T.buffer_store(acc[j], kernel.dot(acc[j][lane], left, right), [lane])
    for j in range(count):
        T.buffer_store(scores, acc[j][lane], [start + j, lane])
        T.buffer_store(top, T.max(top[lane], acc[j][lane]), [lane])


def _accumulators(kernel: Kernel, begin: Sequence[Expr | int]) -> list[Buffer]:
    """A vector each, all of its lanes as they begin."""
    lanes = kernel.lanes
    buffers = [T.alloc_buffer((lanes,), "int32", scope="global") for _ in begin]
    for buffer, value in zip(buffers, begin, strict=True):
        T.buffer_store(buffer, splat(value, "int32", lanes), [span(0, lanes)])
    return buffers


def _emit_weights(kernel: Kernel, scores: Buffer, top: Buffer) -> tuple[Buffer, Expr]:
    """The unnormalised probabilities as groups along keys, and their sums."""
    problem, isa, lanes = kernel.problem, kernel.isa, kernel.lanes
    lane = span(0, lanes)
    full = full_scale(problem.bits)
    exp = Exp2Scalars(*(keep(T.Cast("int32", kernel.scalars[i])) for i in range(4)))
    weights = T.alloc_buffer((kernel.groups, lanes), "int32", scope="global")
    sums = T.alloc_buffer((lanes,), "int32", scope="global")
    # Where 128 is taken off every probability, the sums begin with what that takes off them.
    begin = 128 * isa.group * kernel.groups if kernel.lowers else 0
    T.buffer_store(sums, splat(begin, "int32", lanes), [lane])
    ones = splat(sum(1 << i * kernel.bits for i in range(isa.group)), "int32", lanes)

    def pack(group: Expr | int, members: int) -> None:
        differences = [
            top[lane] - scores[group * isa.group + member, lane] for member in range(members)
        ]
        packed = emit_exp2_packed(exp, differences, full, kernel.bits, isa, words=problem.words)
        if kernel.lowers:
            packed = packed ^ splat(T.int32(-0x7F7F7F80), "int32", lanes)
        packed = keep(packed)
        T.buffer_store(weights, packed, [group, lane])
        T.buffer_store(sums, kernel.dot(sums[lane], packed, ones), [lane])

    whole, left = divmod(problem.keys, isa.group)
    with T.serial(whole) as group:
        pack(group, isa.group)
    if left:
        pack(whole, left)
    return weights, sums[lane]


def _emit_weighted(
    kernel: Kernel,
    offset: int,
    count: int,
    weights: Buffer,
    packed: tuple[Buffer, Buffer],
) -> list[Buffer]:
    """Sums of values weighted by probabilities: `count` columns from `offset`."""
    values, sums = packed
    lanes = kernel.lanes
    lane = span(0, lanes)
    block, column = divmod(offset, lanes)
    columns = range(column, column + count)
    acc = _accumulators(
        kernel, [sums[offset + e] * 128 if kernel.lowers else 0 for e in range(count)]
    )
    with T.serial(kernel.groups) as g:
        left = keep(weights[g, lane])
        prefetch(kernel.isa, values[block, g + AHEAD, 0])
        for e, at in enumerate(columns):
            right = T.broadcast(values[block, g, at], lanes)
            T.buffer_store(acc[e], kernel.dot(acc[e][lane], left, right), [lane])
    return acc


def _per_lane(problem: Problem) -> int:
    """Results that fit in an int32."""
    return 32 // bits_of(problem.dtype)


def _emit_results(
    kernel: Kernel, offset: int, count: int, acc: list[Buffer], inverse: Expr, results: Buffer
) -> None:
    """Normalise, requantise and pack the results of some columns, neighbours in one int32."""
    problem, lanes = kernel.problem, kernel.lanes
    lane = span(0, lanes)
    together = _per_lane(problem)
    bits = 32 // together
    for start in range(0, count, together):
        packed = splat(0, "int32", lanes)
        for member in range(together):
            value = _result(kernel, acc[start + member][lane], inverse)
            if bits < 32:
                value = value & splat((1 << bits) - 1, "int32", lanes)
            packed = packed | (value << splat(member * bits, "int32", lanes))
        T.buffer_store(results, packed, [(offset + start) // together, lane])


def _result(kernel: Kernel, acc: Expr, inverse: Expr) -> Expr:
    """`clamp((acc * inverse + offset) >> shift)` as int32 lanes."""
    problem = kernel.problem
    if not problem.upper:
        product = uniform_products(acc, inverse) + kernel.scalar("offset")
        return limited(product >> kernel.scalar("shift"), problem.lo, problem.hi, problem.fits)
    raised = acc << splat(T.Cast("int32", kernel.scalar("shift")), "int32", kernel.lanes)
    high = upper_halves(uniform_products(raised, inverse))
    rounded = high + splat(T.Cast("int32", kernel.scalar("offset")), "int32", kernel.lanes)
    return clamp(rounded >> splat(1, "int32", kernel.lanes), problem.lo, problem.hi)


def _emit_out(kernel: Kernel, head: Expr, query: Expr, results: Buffer) -> None:
    problem, lanes = kernel.problem, kernel.lanes
    together = _per_lane(problem)
    groups = problem.width // together
    zero = splat(0, "int32", lanes)
    for first in range(0, groups, lanes):
        count = min(lanes, groups - first)
        columns = [results[first + g, span(0, lanes)] for g in range(count)]
        rows = [keep(row) for row in transposed([*columns, *[zero] * (lanes - count)])]
        for i, row in enumerate(rows):
            start = problem.out.at(head, query + i) + first * together
            with T.If(query + i < problem.queries), T.Then():
                for at, wide in pieces(count, lanes):
                    value = T.Shuffle([row], list(range(at, at + wide)))
                    value = T.reinterpret(typed(problem.dtype, wide * together), value)
                    T.buffer_store(
                        kernel.out, value, [span(start + at * together, wide * together)]
                    )
