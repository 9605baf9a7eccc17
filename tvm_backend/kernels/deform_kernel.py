"""The kernel of `deform_attention`: places and weights of a head's samples in vectors across the
samples, then every cell that they read in vectors across the channels."""

from dataclasses import dataclass

from iqvit.ops.taps import cell_taps, centre
from iqvit.tvm_backend.kernels.exponential import Exp2Scalars, emit_exp2
from iqvit.tvm_backend.kernels.integers import (
    Wide,
    as_int32,
    as_type,
    keep,
    largest,
    limited,
    madd,
    narrow,
    total,
    widen,
)
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.sampling import VectorLib
from iqvit.tvm_backend.kernels.script import Buffer, Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import (
    HALVES,
    function_attributes,
    limits,
    pieces,
    span,
    splat,
)

PLACE_SHIFT, BEFORE, PRE, CAP, MULTIPLIER, EXP_SHIFT, NUMERATOR, CONSTANT, SHIFT = range(9)
"""Places of the attributes among the scalars that the function is given."""


@dataclass(frozen=True)
class Problem:
    """What the generated code depends on; all other attributes are given to the function."""

    mode: str
    fraction: int
    full: int
    """The largest weight of a sample."""
    queries: int
    heads: int
    samples: int
    """Of a head, of all levels together."""
    depth: int
    """Channels of a head."""
    tokens: int
    logits: str
    """Type of the logits."""
    dtype: str
    lo: int
    hi: int
    fits: bool
    """Whether the result fits int32 before it saturates."""

    @property
    def taps(self) -> int:
        """Cells that a sample reads."""
        return 4 if self.mode == "bilinear" else 1

    def vectors(self, isa: Isa) -> int:
        """Vectors of lanes that hold the samples of a head."""
        return -(-self.samples // isa.lanes)


@dataclass(frozen=True)
class _Kernel:
    problem: Problem
    isa: Isa
    buffers: dict[str, Buffer]
    query: Expr

    @property
    def padded(self) -> int:
        """Samples of a head in whole vectors."""
        return self.problem.vectors(self.isa) * self.isa.lanes

    def scalar(self, place: int) -> Expr:
        """An attribute, int64."""
        return self.buffers["scalars"][place]

    def lane(self, value: Expr | int) -> Expr:
        """A number in all lanes, int32."""
        return splat(value, "int32", self.isa.lanes)

    def scratch(self, size: int, dtype: str) -> Buffer:
        """Memory of the task."""
        return T.alloc_buffer((size,), dtype, scope="global")


def deform_kernel(name: str, problem: Problem, isa: Isa) -> PrimFunc:
    """`name(value [T*C], boxes [Q*4], offsets, logits, sizes, step, box, scalars, out [1, Q, C])`,
    parallel over queries; the geometry is as `deform._geometry` lays it out."""
    heads, samples = problem.heads, problem.samples
    channels, padded = heads * problem.depth, problem.vectors(isa) * isa.lanes
    shapes = {
        "value": ((problem.tokens * channels,), "int8"),
        "boxes": ((problem.queries * 4,), "int16"),
        "offsets": ((problem.queries * heads * samples * 2,), "int16"),
        "logits": ((problem.queries * heads * samples,), problem.logits),
        "sizes": ((3, padded), "int32"),
        "step": ((2, padded), "int32"),
        "box": ((2, padded), "int64"),
        "scalars": ((SHIFT + 1,), "int64"),
        "out": ((1, problem.queries, channels), problem.dtype),
    }
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        buffers = {key: T.arg(key, T.buffer(*of)) for key, of in shapes.items()}
        with T.parallel(problem.queries) as query:
            kernel = _Kernel(problem, isa, buffers, query)
            # Beyond the last head the vectors read what nobody uses.
            row = heads * samples
            offsets = _copied(kernel, "offsets", 2 * row, 2 * isa.lanes)
            logits = _copied(kernel, "logits", row, isa.lanes)
            centres = _emit_centres(kernel)
            with T.serial(heads) as head:
                _emit_head(kernel, head, offsets, logits, centres)
    return builder.get()


def _copied(kernel: _Kernel, name: str, length: int, room: int) -> Buffer:
    """The query's row of a buffer, in memory that may be read beyond its end."""
    source = kernel.buffers[name]
    copy = kernel.scratch(length + room, str(source.dtype))
    width = 2 * kernel.isa.lanes
    start = T.Bind(kernel.query * length)
    whole = length // width
    if whole:
        with T.serial(whole) as i:
            T.buffer_store(copy, source[span(start + i * width, width)], [span(i * width, width)])
    for offset, lanes in pieces(length - whole * width, width):
        at = whole * width + offset
        T.buffer_store(copy, source[span(start + at, lanes)], [span(at, lanes)])
    return copy


def _emit_centres(kernel: _Kernel) -> Buffer:
    """The part of all places that the query's box centre gives, along x and along y; int64."""
    half, box = kernel.isa.lanes // 2, kernel.buffers["box"]
    result = kernel.scratch(2 * kernel.padded, "int64")
    for axis in range(2):
        middle = T.Cast("int64", kernel.buffers["boxes"][kernel.query * 4 + axis])
        middle = splat(keep(middle), "int64", half)
        for i in range(0, kernel.padded, half):
            value = box[axis, span(i, half)] * middle + splat(kernel.scalar(BEFORE), "int64", half)
            T.buffer_store(result, value, [span(axis * kernel.padded + i, half)])
    return result


def _emit_head(
    kernel: _Kernel, head: Expr, offsets: Buffer, logits: Buffer, centres: Buffer
) -> None:
    problem = kernel.problem
    shares = kernel.scratch(problem.taps * kernel.padded, "int32")
    cells = kernel.scratch(problem.taps * kernel.padded, "int32")
    weights, row_sum = _emit_weights(kernel, head, logits)
    for start in range(0, kernel.padded, kernel.isa.lanes):
        at = span(start, kernel.isa.lanes)
        x, y = _places(kernel, head, offsets, centres, start)
        width, height, first = (keep(kernel.buffers["sizes"][i, at]) for i in range(3))
        taps = cell_taps(VectorLib, problem.mode, problem.fraction, x, y, width, height)
        for tap, (cell, weight) in enumerate(taps):
            address = (first + cell) * kernel.lane(problem.heads * problem.depth)
            address = address + kernel.lane(head * problem.depth)
            place = span(tap * kernel.padded + start, kernel.isa.lanes)
            T.buffer_store(cells, address, [place])
            T.buffer_store(shares, _share(kernel, weights[at], weight), [place])
    reciprocal = keep(T.truncdiv(kernel.scalar(NUMERATOR), row_sum))
    _emit_sums(kernel, head, cells, shares, reciprocal)


def _share(kernel: _Kernel, p: Expr, weight: Expr | int) -> Expr:
    """What a tap has of the weight of its sample."""
    bits = 2 * kernel.problem.fraction
    product = p * weight
    if bits == 0:
        return product
    return (product + kernel.lane(1 << (bits - 1))) >> kernel.lane(bits)


def _emit_weights(kernel: _Kernel, head: Expr, logits: Buffer) -> tuple[Buffer, Expr]:
    """The softmax of a head's logits before its division, and its sum (int64); 0 in the lanes
    that have no sample."""
    lanes, samples = kernel.isa.lanes, kernel.problem.samples
    result = kernel.scratch(kernel.padded, "int32")
    index = T.ramp(T.int32(0), 1, lanes)
    starts = range(0, kernel.padded, lanes)

    def used(value: Expr, start: int, other: int) -> Expr:
        if start + lanes <= samples:
            return value
        return T.Select(index < kernel.lane(samples - start), value, kernel.lane(other))

    rows = [keep(as_int32(logits[span(head * samples + i, lanes)])) for i in starts]
    least = limits(kernel.problem.logits)[0]
    top = used(rows[0], 0, least)
    for start, row in zip(starts[1:], rows[1:], strict=True):
        top = T.max(top, used(row, start, least))
    top = keep(splat(largest(top), "int32", lanes))
    scalars = [T.Cast("int32", kernel.scalar(i)) for i in (PRE, CAP, MULTIPLIER, EXP_SHIFT)]
    row_sum: Expr | None = None
    for start, row in zip(starts, rows, strict=True):
        # A lane without a sample has a distance of 0, so that its exponential is defined.
        distance = keep(used(top - row, start, 0))
        weight = emit_exp2(Exp2Scalars(*scalars), distance, kernel.problem.full, kernel.isa)
        p = keep(used(weight, start, 0))
        T.buffer_store(result, p, [span(start, lanes)])
        row_sum = p if row_sum is None else row_sum + p
    return result, T.Cast("int64", total(keep(row_sum)))


def _places(
    kernel: _Kernel, head: Expr, offsets: Buffer, centres: Buffer, start: int
) -> tuple[Expr, Expr]:
    """Where the samples from `start` read, along x and along y."""
    problem, lanes = kernel.problem, kernel.isa.lanes
    at = (head * problem.samples + start) * 2
    # A pair of int16 is one int32 lane: x in its lower half, y in its upper.
    pair = keep(T.reinterpret(f"int32x{lanes}", offsets[span(at, 2 * lanes)]))
    sixteen = kernel.lane(16)
    moves = ((pair << sixteen) >> sixteen, pair >> sixteen)
    _, after = centre(problem.mode, problem.fraction, 0)
    results: list[Expr] = []
    for axis, move in enumerate(moves):
        extent = as_int32(kernel.buffers["boxes"][kernel.query * 4 + 2 + axis])
        product = keep(move * kernel.lane(keep(extent)))
        step = keep(kernel.buffers["step"][axis, span(start, lanes)])
        base = axis * kernel.padded + start
        half = lanes // 2
        middle = Wide(tuple(centres[span(base + i * half, half)] for i in range(2)))
        scaled = (widen(product) * widen(step) + middle) >> kernel.scalar(PLACE_SHIFT)
        results.append(keep(narrow(scaled) + kernel.lane(after)))
    return results[0], results[1]


def _emit_sums(
    kernel: _Kernel, head: Expr, cells: Buffer, shares: Buffer, reciprocal: Expr
) -> None:
    """The cells of all samples, weighted and summed over vectors of channels, and the result."""
    problem, isa = kernel.problem, kernel.isa
    parts = _channel_pieces(problem.depth, isa.lanes)
    sums = [kernel.scratch(lanes, "int32") for _, lanes in parts]
    for (_, lanes), acc in zip(parts, sums, strict=True):
        T.buffer_store(acc, splat(0, "int32", lanes), [span(0, lanes)])
    with T.serial(problem.samples) as k:
        for tap in range(problem.taps):
            cell = keep(cells[tap * kernel.padded + k])
            share = keep(shares[tap * kernel.padded + k])
            for (offset, lanes), acc in zip(parts, sums, strict=True):
                value = as_int32(kernel.buffers["value"][span(cell + offset, lanes)])
                factor, here = splat(share, "int32", lanes), span(0, lanes)
                # Both fit 16 bits, of whose multiply (x86) the upper half of the share, 0, adds 0.
                short = lanes == isa.lanes != HALVES
                product = madd(value, factor, lanes) if short else value * factor
                T.buffer_store(acc, acc[here] + product, [here])
    for (offset, lanes), acc in zip(parts, sums, strict=True):
        scaled = widen(acc[span(0, lanes)]) * reciprocal + kernel.scalar(CONSTANT)
        result = limited(scaled >> kernel.scalar(SHIFT), problem.lo, problem.hi, problem.fits)
        to = head * problem.depth + offset
        stored = as_type(result, problem.dtype)
        T.buffer_store(kernel.buffers["out"], stored, [0, kernel.query, span(to, lanes)])


def _channel_pieces(depth: int, lanes: int) -> list[tuple[int, int]]:
    """(offset, width) of the vectors over the channels of a head."""
    whole = depth // lanes * lanes
    rest = [(whole + offset, width) for offset, width in pieces(depth - whole, lanes)]
    return [(i, lanes) for i in range(0, whole, lanes)] + rest
