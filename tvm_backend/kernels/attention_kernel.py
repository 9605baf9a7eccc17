"""`attention` on vectors: one lane a query, so that maxima, exponentials and sums stay in lanes.

    s[j, i] = sum_d q[i, d] * k[j, d]          dot products, k broadcast, q packed by lanes
    p[j, i] = full * 2**-t(max_j s - s)        in int32 lanes, stored as the next operand
    a[e, i] = sum_j p[j, i] * v[j, e]          dot products, v broadcast
    out[i, e] = clamp((a * (numerator // sum_j p) + offset + half) >> shift)

q, k, v and the result are read and written where they lie: any strides of head and token.

Where products are woven (`Isa.woven`), those of queries and keys are computed among the
probabilities of the queries before.
"""

import math

from iqvit.tvm_backend.kernels.attention_form import SCALARS, Kernel, Problem
from iqvit.tvm_backend.kernels.attention_operands import emit_keys, emit_queries, emit_values
from iqvit.tvm_backend.kernels.attention_results import emit_results
from iqvit.tvm_backend.kernels.attention_scores import Scores
from iqvit.tvm_backend.kernels.interleave import interleave
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes

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
        share = -(-blocks // min(blocks, -(-MIN_TASKS // problem.heads)))
        parts = -(-blocks // share)
        with T.parallel(problem.heads * parts) as task:
            head = T.Bind(task // parts)
            first = T.Bind(task % parts * share)
            count = T.Bind(T.min(share, blocks - first))
            emit = _emit_woven if kernel.weaves else _emit_blocks
            emit(kernel, head, first * isa.lanes, count)
    return interleave(builder.get())


def _emit_blocks(kernel: Kernel, head: Expr, first: Expr, count: Expr) -> None:
    """The results of `count` vectors of queries, one after the other."""
    keys, values = emit_keys(kernel, head), emit_values(kernel, head)
    with T.serial(count) as step:
        query = T.Bind(first + step * kernel.lanes)
        packed = emit_queries(kernel, head, query)
        scores = Scores.of(kernel, keys)
        scores.emit_products(packed)
        scores.emit_weights()
        emit_results(kernel, head, query, scores, values)


def _emit_woven(kernel: Kernel, head: Expr, first: Expr, count: Expr) -> None:
    """The same, the products of a vector of queries among the probabilities of the one before."""
    keys, values = emit_keys(kernel, head), emit_values(kernel, head)
    scores = Scores.of(kernel, keys)
    scores.emit_products(emit_queries(kernel, head, first))
    with T.serial(count - 1) as step:
        query = T.Bind(first + step * kernel.lanes)
        scores.emit_woven(emit_queries(kernel, head, query + kernel.lanes))
        emit_results(kernel, head, query, scores, values)
    scores.emit_weights()
    emit_results(kernel, head, first + (count - 1) * kernel.lanes, scores, values)
