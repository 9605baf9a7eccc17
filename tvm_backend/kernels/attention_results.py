"""The second half of `attention`: values weighted by probabilities, normalised and stored."""

from collections.abc import Iterator

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
from iqvit.tvm_backend.kernels.interleave import woven
from iqvit.tvm_backend.kernels.script import Buffer, Expr, T
from iqvit.tvm_backend.kernels.vector import bits_of, clamp, pieces, span, splat, typed

AHEAD = 4
"""Groups of keys by which values are asked for before they are read."""


def emit_results(
    kernel: Kernel, head: Expr, query: Expr, scores: Scores, values: tuple[Buffer, Buffer]
) -> None:
    """The results of a vector of queries whose probabilities are known. values: `emit_values`."""
    width, lanes = kernel.problem.width, kernel.lanes
    results = T.alloc_buffer((width // _per_lane(kernel.problem), lanes), "int32", scope="global")
    if kernel.weaves and kernel.groups >= lanes:
        _emit_woven(kernel, scores, values, results)
    else:
        inverse = keep(quotient(kernel.scalar("numerator"), scores.sums[span(0, lanes)]))
        for columns in _blocks(kernel):
            acc = _begin(kernel, columns, values)
            with T.serial(kernel.groups) as g:
                _add(kernel, columns, g, scores, values, acc)
            sums = [acc[e][span(0, lanes)] for e in range(len(columns))]
            for first in range(0, len(columns), _per_lane(kernel.problem)):
                _emit_some(kernel, columns[first], sums[first:], inverse, results)
    _emit_out(kernel, head, query, results)


def _emit_woven(
    kernel: Kernel, scores: Scores, values: tuple[Buffer, Buffer], results: Buffer
) -> None:
    """The same, among the sums of the next columns; among those of the first ones the divisions."""
    lanes, together = kernel.lanes, _per_lane(kernel.problem)
    lane = span(0, lanes)
    inverse = T.alloc_buffer((lanes,), "int32", scope="global")
    stash = T.alloc_buffer((kernel.block, lanes), "int32", scope="global")

    def some(first: int, row: Expr | int) -> None:
        sums = [stash[row * together + e, lane] for e in range(together)]
        _emit_some(kernel, first + row * together, sums, inverse[lane], results)

    before = range(0)
    for columns in _blocks(kernel):
        acc = _begin(kernel, columns, values)
        rows = len(before) // together
        share = lanes // rows if rows else 1
        if rows == 0:
            with T.serial(lanes) as i:
                divisor = T.Cast("int64", scores.sums[i])
                quotient_of = T.truncdiv(kernel.scalar("numerator"), divisor)
                T.buffer_store(inverse, T.Cast("int32", quotient_of), [i])
                _add(kernel, columns, i, scores, values, acc)
        else:
            with T.serial(rows) as row, woven() as thread:
                with thread():
                    for g in range(share):
                        _add(kernel, columns, row * share + g, scores, values, acc)
                with thread():
                    some(before.start, row)
        done = share * rows or lanes
        with T.serial(kernel.groups - done) as g:
            _add(kernel, columns, done + g, scores, values, acc)
        for e, sums in enumerate(acc):
            T.buffer_store(stash, sums[lane], [e, lane])
        before = columns
    for row in range(len(before) // together):
        some(before.start, row)


def _blocks(kernel: Kernel) -> Iterator[range]:
    """The columns of values of every register block."""
    width = kernel.problem.width
    for first in range(0, width, kernel.block):
        yield range(first, min(first + kernel.block, width))


def _begin(kernel: Kernel, columns: range, values: tuple[Buffer, Buffer]) -> list[Buffer]:
    sums = values[1]
    return accumulators(kernel, [sums[e] * 128 if kernel.lowers else 0 for e in columns])


def _add(
    kernel: Kernel,
    columns: range,
    g: Expr | int,
    scores: Scores,
    packed: tuple[Buffer, Buffer],
    acc: list[Buffer],
) -> None:
    """Add the values of a group of keys, weighted by their probabilities."""
    values, lanes = packed[0], kernel.lanes
    lane = span(0, lanes)
    block = columns.start // lanes
    left = keep(scores.weights[g, lane])
    prefetch(kernel.isa, values[block, g + AHEAD, 0])
    for sums, column in zip(acc, columns, strict=True):
        right = T.broadcast(values[block, g, column % lanes], lanes)
        T.buffer_store(sums, kernel.dot(sums[lane], left, right), [lane])


def _per_lane(problem: Problem) -> int:
    """Results that fit in an int32."""
    return 32 // bits_of(problem.dtype)


def _emit_some(
    kernel: Kernel, first: Expr | int, sums: list[Expr], inverse: Expr, results: Buffer
) -> None:
    """Normalise and requantise columns from the first on, as many as fit an int32."""
    problem, lanes = kernel.problem, kernel.lanes
    together = _per_lane(problem)
    bits = 32 // together
    packed = splat(0, "int32", lanes)
    for member in range(together):
        value = keep(_result(kernel, sums[member], inverse))
        if bits < 32:
            value = value & splat((1 << bits) - 1, "int32", lanes)
        packed = keep(packed | (value << splat(member * bits, "int32", lanes)))
    T.buffer_store(results, packed, [first // together, span(0, lanes)])


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
