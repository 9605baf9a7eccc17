"""The second half of `attention`: values weighted by probabilities, normalised and stored."""

from iqvit.tvm_backend.kernels.attention_form import Kernel, Problem
from iqvit.tvm_backend.kernels.attention_scores import Scores, accumulators
from iqvit.tvm_backend.kernels.instructions import prefetch
from iqvit.tvm_backend.kernels.integers import (
    keep,
    limited,
    quotient,
    transposed,
    uniform_products,
    upper_halves,
)
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import bits_of, clamp, pieces, span, splat, typed

AHEAD = 4
"""Groups of keys by which values are asked for before they are read."""


def emit_results(
    kernel: Kernel, head: Expr, query: Expr, scores: Scores, values: tuple[Buffer, Buffer]
) -> None:
    """The results of a vector of queries whose probabilities are known. values: `emit_values`."""
    problem, lanes = kernel.problem, kernel.lanes
    inverse = keep(quotient(kernel.scalar("numerator"), scores.sums[span(0, lanes)]))
    results = T.alloc_buffer((problem.width // _per_lane(problem), lanes), "int32", scope="global")
    for offset in range(0, problem.width, kernel.block):
        count = min(kernel.block, problem.width - offset)
        acc = _emit_weighted(kernel, offset, count, scores.weights, values)
        _emit_some(kernel, offset, count, acc, inverse, results)
    _emit_out(kernel, head, query, results)


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
    acc = accumulators(
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


def _emit_some(
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
