"""Programs that nobody wrote: operators drawn one after the other, each fitted to what it reads."""

import contextlib

import numpy as np
import torch
from hypothesis import strategies as st

from iqvit.arith import multipliers
from iqvit.errors import GraphError
from iqvit.intgraph import GraphBuilder, Node
from iqvit.inttype import LIMITS, QParams
from iqvit.ops import (
    Add,
    Argmax,
    Attention,
    AvgPool,
    Concat,
    Conv2d,
    DeformAttention,
    GridSample,
    L2Normalize,
    LambdaShiftGelu,
    LayerNorm,
    Linear,
    Lookup,
    Matmul,
    MaxPool,
    Mean,
    Multiply,
    Permute,
    Rectified,
    Requantise,
    Reshape,
    RowLinear,
    RowPeak,
    RowQuantise,
    Slice,
    Softmax,
    TakeRows,
    TopK,
    UpsampleBilinear,
    UpsampleNearest,
)
from iqvit.ops.input import Input

UNIT = QParams.of(1.0)
BYTES = ("int8", "uint8")
NARROW = (*BYTES, "int16")
MOST = 6000
"""Elements of a value, so that a program takes moments."""


class Growth:
    """A program that grows, and the values that one image gives it, to which scales are fitted."""

    def __init__(self, data):
        self.data = data
        self.rng = np.random.default_rng(self.number(0, 2**16))
        self.builder = GraphBuilder()
        self.shape = (1, self.number(1, 4), self.number(4, 24), self.number(4, 24))
        image = self.builder.add("image", Input(self.shape), [])
        pixels = self.rng.integers(0, 256, self.shape).astype(np.uint8)
        self.values = {image.name: torch.from_numpy(pixels)}

    def number(self, least, most):
        return self.data.draw(st.integers(least, most))

    def one_of(self, *choices):
        return self.data.draw(st.sampled_from(choices))

    def channels(self):
        """How many results a product has; often whole panels."""
        return self.number(1, 100) if self.number(0, 1) else self.one_of(32, 64, 128)

    def pick(self, *conditions):
        """A value made so far, most often the newest, for which all conditions hold; or None."""
        fitting = [
            self.builder.nodes[name]
            for name in self.values
            if all(holds(self.builder.nodes[name].type) for holds in conditions)
        ]
        if not fitting:
            return None
        return fitting[-1] if self.number(0, 3) else self.one_of(*fitting)

    def add(self, op, *inputs):
        """The node of an operator that reads nodes and arrays; None where it grows too large."""
        nodes = [
            source if isinstance(source, Node) else self.builder.constant("c", source)
            for source in inputs
        ]
        out = self.builder.add(op.NAME, op, nodes)
        read = [
            self.values[node.name]
            if node.name in self.values
            else torch.from_numpy(np.array(node.type.value))
            for node in nodes
        ]
        self.values[out.name] = op.run(*read)
        return out

    def most(self, node):
        """The largest magnitude of a value."""
        return max(1, int(self.values[node.name].to(torch.int64).abs().max()))

    def fitted(self, most, dtype):
        """What integers of `dtype` stand for so that they are filled, or some are beyond."""
        zero = 0 if dtype != "uint8" else self.number(0, 200)
        return QParams.of(most / LIMITS[dtype][1] * self.one_of(0.7, 1.0, 3.0), zero)

    def to(self, node, *dtypes):
        """The same value, requantised if it has none of these types."""
        if node.type.dtype in dtypes:
            return node
        dtype = self.one_of(*dtypes)
        out = QParams.of(self.most(node) / LIMITS[dtype][1])
        return self.add(Requantise.between(UNIT, out, dtype), node)

    def weights(self, *shape):
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def scaled(self, acc, channels, dtype):
        """Bias, multipliers, shift and zero point that bring sums as large as `acc` to `dtype`."""
        bias = self.rng.integers(-acc // 4 - 1, acc // 4 + 2, channels).astype(np.int32)
        out = self.fitted(acc, dtype)
        m, shift = multipliers(self.rng.uniform(0.3, 1.0, channels) / out.scale)
        return bias, m.astype(np.int32), shift, int(out.zero_point)


def of_rank(rank):
    return lambda kind: len(kind.shape) == rank


def tokens(kind):
    return len(kind.shape) == 3


def image(kind):
    return len(kind.shape) == 4 and kind.shape[0] == 1


def of(*dtypes):
    return lambda kind: kind.dtype in dtypes


def largest_sum(grown, x, weight):
    """A typical large sum of products of x and weights [N, ...]."""
    terms = weight[0].size
    return max(1, int(grown.most(x) * 127 * terms**0.5 / 3))


def linear(grown, dtype=None, channels=None, x=None):
    x = x or grown.pick(tokens)
    if x is None:
        return None
    x, dtype = grown.to(x, *BYTES), dtype or grown.one_of(*NARROW)
    n = channels or grown.channels()
    weight = grown.weights(n, x.type.shape[-1])
    bias, m, shift, zero = grown.scaled(largest_sum(grown, x, weight), n, dtype)
    return grown.add(Linear(shift, zero, dtype, *LIMITS[dtype]), x, weight, bias, m)


def row_linear(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    return rows_times(grown, *scaled_rows(grown, x), grown.one_of(*NARROW), grown.channels())


def scaled_rows(grown, x):
    """Rows at their own scales, and their peaks."""
    x = grown.to(x, "int16")
    one_sided = grown.number(0, 1) if x.type.lo > -(2**14) else 0
    kind = (one_sided, x.type.lo if one_sided else 0)
    peak = grown.add(RowPeak(*kind), x)
    return grown.add(RowQuantise(*kind), x, peak), peak


def rows_times(grown, rows, peak, dtype, n):
    weight = grown.weights(n, rows.type.shape[-1])
    most = largest_sum(grown, rows, weight) * grown.most(peak)
    steps = LIMITS[dtype][1] * grown.rng.uniform(0.2, 1.0, n)
    op, bias, m = RowLinear.of(steps / most, steps / 8, dtype, LIMITS[dtype])
    return grown.add(op, rows, peak, weight, bias, m)


def layernorm(grown):
    x = grown.pick(tokens, lambda kind: kind.shape[-1] > 1)
    if x is None:
        return None
    dtype, count = grown.one_of(*NARROW), x.type.shape[-1]
    gain, bias = grown.rng.uniform(-2, 2, count), grown.rng.uniform(-1, 1, count)
    epsilon = grown.one_of(1.0, 30.0)
    out = grown.fitted(5, dtype)
    op, g, b = LayerNorm.of(x.type, UNIT, gain, bias, epsilon, out, dtype)
    return grown.add(op, x, g, b)


def rectified(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    x, dtype = grown.to(x, "int16"), grown.one_of(*NARROW)
    scale = grown.one_of(2.0, 6.0, 40.0) / grown.most(x)
    out = grown.fitted(grown.most(x) * scale, dtype)
    if grown.number(0, 1):
        scales = out.scale * grown.rng.uniform(0.5, 2.0, x.type.shape[-1])
        out = QParams.of(scales, out.zero_point, -1)
    function = grown.one_of("gelu", "gelu_tanh", "silu")
    return grown.add(*_reading(x, Rectified.of(function, QParams.of(scale), out, dtype)))


def lambda_shiftgelu(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    x, dtype = grown.to(x, "int8"), grown.one_of(*NARROW)
    scale = QParams.of(grown.one_of(2.0, 6.0) / 128)
    return grown.add(*_reading(x, LambdaShiftGelu.of(scale, grown.fitted(4, dtype), dtype)))


def _reading(x, made):
    op, *constants = made
    return op, x, *constants


def lookup(grown):
    x = grown.to(grown.pick(), *BYTES)
    dtype = grown.one_of(*NARROW)
    table = grown.rng.integers(LIMITS[dtype][0], LIMITS[dtype][1] + 1, 256)
    return grown.add(Lookup(), x, table.astype(dtype))


def requantise(grown):
    x, dtype = grown.pick(), grown.one_of(*NARROW)
    return grown.add(Requantise.between(UNIT, grown.fitted(grown.most(x), dtype), dtype), x)


def add(grown):
    a = grown.pick()
    b = grown.pick(lambda kind: kind.shape == a.type.shape)
    dtype = grown.one_of(*NARROW, "int32")
    if dtype == "int32":
        return grown.add(Add.of(UNIT, UNIT, QParams.of(0.4), dtype), a, b)
    if grown.number(0, 3) == 0:
        b = grown.rng.integers(-128, 128, a.type.shape[-1:]).astype(np.int8)
        most = grown.most(a) + 128
    else:
        most = grown.most(a) + grown.most(b)
    return grown.add(Add.of(UNIT, UNIT, grown.fitted(most, dtype), dtype), a, b)


def multiply(grown):
    a = grown.to(grown.pick(), *NARROW)
    b = grown.to(grown.pick(lambda kind: kind.shape == a.type.shape), *NARROW)
    dtype = grown.one_of(*NARROW)
    out = grown.fitted(grown.most(a) * grown.most(b) / 2, dtype)
    return grown.add(Multiply.of(UNIT, UNIT, out, dtype), a, b)


def attention(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    heads, depth, count = grown.number(1, 3), 4 * grown.number(1, 9), x.type.shape[1]
    if grown.number(0, 1):
        heads, depth = grown.one_of((1, 64), (2, 8), (4, 4), (2, 32))
    width = heads * depth
    form = grown.one_of("one product", "rows", "products")
    if form == "one product":
        both = linear(grown, "int8", 3 * width, x)
        parts = grown.add(Reshape((1, count, 3, heads, depth)), both)
        parts = grown.add(Permute((2, 0, 3, 1, 4)), parts)
        q, k, v = (grown.add(Slice(0, i, i + 1, 1), parts) for i in range(3))
        q, k, v = (grown.add(Reshape((1, heads, count, depth)), part) for part in (q, k, v))
    else:
        if form == "rows":
            rows = scaled_rows(grown, x)
            sources = [rows_times(grown, *rows, "int8", width) for _ in range(3)]
        else:
            keys = grown.pick(tokens)
            sources = [linear(grown, "int8", width, y) for y in (x, keys, keys)]
        split = [grown.add(Reshape((1, y.type.shape[1], heads, depth)), y) for y in sources]
        q, k, v = (grown.add(Permute((0, 2, 1, 3)), y) for y in split)
    dtype, scale = grown.one_of(*NARROW), QParams.of(2.0**-5)
    logits = grown.one_of(0.1, 1.0, 10.0) / depth**0.5
    out = grown.fitted(float(scale.scale) * grown.most(v), dtype)
    op = Attention.of(scale, scale, scale, out, logits, 8, dtype)
    attended = grown.add(op, q, k, v)
    together = grown.add(Permute((0, 2, 1, 3)), attended)
    return grown.add(Reshape((1, count, width)), together)


def matmul(grown):
    a = grown.pick(tokens)
    if a is None:
        return None
    b = grown.pick(tokens, lambda kind: kind.shape[-1] == a.type.shape[-1])
    a, b = grown.to(a, *BYTES), grown.to(b, "int8")
    dtype = grown.one_of(*NARROW)
    most = grown.most(a) * grown.most(b) * a.type.shape[-1] / 4
    op = Matmul.of(UNIT, UNIT, grown.fitted(most, dtype), dtype)
    return grown.add(op, a, grown.add(Permute((0, 2, 1)), b))


def some(grown):
    """A part of an axis."""
    x = grown.pick()
    axis = grown.number(1, len(x.type.shape) - 1) if len(x.type.shape) > 1 else 0
    size = x.type.shape[axis]
    start = grown.number(0, size - 1)
    op = Slice(axis, start, grown.number(start + 1, size), grown.number(1, 2))
    return grown.add(op, x)


def concat(grown):
    a = grown.pick(lambda kind: len(kind.shape) > 1)
    axis = grown.number(1, len(a.type.shape) - 1)

    def joins(kind):
        rest = [
            (*shape[:axis], *shape[axis + 1 :]) if len(shape) > axis else None
            for shape in (kind.shape, a.type.shape)
        ]
        return kind.dtype == a.type.dtype and rest[0] == rest[1]

    return grown.add(Concat(axis), a, grown.pick(joins))


def best_rows(grown):
    x = grown.pick(tokens, of("int16", *BYTES))
    if x is None:
        return None
    count = x.type.shape[1]
    scores = linear(grown, "int8", 1, x)
    best = grown.add(TopK(grown.number(1, count)), grown.add(Reshape((1, count)), scores))
    return grown.add(TakeRows(), x, best)


def softmax(grown):
    x = grown.pick(of(*NARROW))
    scale = QParams.of(grown.one_of(1.0, 8.0) / grown.most(x))
    return grown.add(Softmax.of(scale, QParams.of(2.0**-8), "uint8"), x)


def l2_normalize(grown):
    x = grown.pick(of(*NARROW))
    return grown.add(L2Normalize.of(1.0, UNIT, QParams.of(2.0**-14), "int16"), x)


def mean(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    shape, dtype = x.type.shape, grown.one_of(*NARROW)
    return grown.add(Mean.of(shape, (1,), True, UNIT, grown.fitted(grown.most(x), dtype), dtype), x)


def conv2d(grown):
    x = grown.pick(image)
    if x is None:
        return None
    x, dtype = grown.to(x, *BYTES), grown.one_of(*NARROW)
    channels, *size = x.type.shape[1:]
    kernel = [grown.number(1, min(3, extent)) for extent in size]
    stride = (grown.number(1, 2), grown.number(1, 2))
    padding = tuple(grown.number(0, k // 2) for k in kernel)
    groups = channels if grown.number(0, 5) == 0 else 1
    n = channels if groups > 1 else grown.channels()
    weight = grown.weights(n, channels // groups, *kernel)
    bias, m, shift, zero = grown.scaled(largest_sum(grown, x, weight), n, dtype)
    pad = (grown.number(0, 127),)
    op = Conv2d(stride, padding, (1, 1), groups, pad, shift, zero, dtype, *LIMITS[dtype])
    return grown.add(op, x, weight, bias, m)


def pool(grown):
    x = grown.pick(image, of(*NARROW))
    if x is None:
        return None
    kernel = tuple(grown.number(1, min(3, extent)) for extent in x.type.shape[2:])
    stride = (grown.number(1, 2), grown.number(1, 2))
    padding = tuple(grown.number(0, k // 2) for k in kernel)
    if grown.number(0, 1):
        return grown.add(MaxPool(kernel, stride, padding), x)
    dtype = grown.one_of(*NARROW)
    out = grown.fitted(grown.most(x), dtype)
    return grown.add(AvgPool.of(kernel, stride, padding, True, UNIT, out, dtype), x)


def upsample(grown):
    x = grown.pick(image, of(*NARROW), lambda kind: kind.size < MOST // 4)
    if x is None:
        return None
    size = [grown.number(1, 2 * extent) for extent in x.type.shape[2:]]
    return grown.add(UpsampleNearest(*size), x)


def class_map(grown):
    x = grown.pick(image, of(*NARROW), lambda kind: kind.size < MOST // 9)
    if x is None:
        return None
    factor = grown.one_of(2, 3, 4)
    larger = grown.add(UpsampleBilinear(*(factor * extent for extent in x.type.shape[2:])), x)
    return grown.add(Argmax(1, grown.number(0, 1), grown.one_of("int32", "uint8")), larger)


def grid_sample(grown):
    x, places = grown.pick(image, of(*NARROW)), grown.pick(tokens, of(*NARROW))
    if x is None or places is None:
        return None
    grid = linear(grown, "int16", 2, places)
    grid = grown.add(Reshape((1, 1, places.type.shape[1], 2)), grid)
    dtype, at = grown.one_of(*NARROW), QParams.of(1.4 / grown.most(grid))
    out = grown.fitted(grown.most(x), dtype)
    mode = grown.one_of("bilinear", "nearest")
    return grown.add(GridSample.of(x.type.shape[2:], UNIT, at, out, dtype, mode), x, grid)


def deform_attention(grown):
    x, queries = grown.pick(image), grown.pick(tokens)
    if x is None or queries is None:
        return None
    heads, points = grown.number(1, 2), grown.number(1, 4)
    value = linear(grown, "int8", heads * 4 * grown.number(1, 5), _tokens_of(grown, x))
    boxes = grown.to(linear(grown, "uint8", 4, queries), "int16")
    offsets = linear(grown, "int16", heads * points * 2, queries)
    logits = linear(grown, "int16", heads * points, queries)
    mode, dtype = grown.one_of("bilinear", "discrete", "nearest"), grown.one_of("int8", "int16")
    op = DeformAttention.of(
        UNIT,
        QParams.of(2.0**-15),
        QParams.of(2.0**-12),
        QParams.of(0.0007),
        grown.fitted(grown.most(value), dtype),
        list(x.type.shape[2:]),
        [points],
        [0.125] * points,
        mode,
        dtype,
    )
    return grown.add(op, value, boxes, offsets, logits)


def to_tokens(grown):
    x = grown.pick(image)
    return None if x is None else _tokens_of(grown, x)


def _tokens_of(grown, x):
    channels, height, width = x.type.shape[1:]
    rows = grown.add(Reshape((1, channels, height * width)), x)
    return grown.add(Permute((0, 2, 1)), rows)


def to_image(grown):
    x = grown.pick(tokens)
    if x is None:
        return None
    count, channels = x.type.shape[1:]
    height = max(h for h in range(1, int(count**0.5) + 1) if count % h == 0)
    planes = grown.add(Permute((0, 2, 1)), x)
    return grown.add(Reshape((1, channels, height, count // height)), planes)


STEPS = (
    linear,
    row_linear,
    layernorm,
    rectified,
    lambda_shiftgelu,
    lookup,
    requantise,
    add,
    multiply,
    attention,
    matmul,
    some,
    concat,
    best_rows,
    softmax,
    l2_normalize,
    mean,
    conv2d,
    pool,
    upsample,
    class_map,
    grid_sample,
    deform_attention,
    to_tokens,
    to_image,
)


def grow(data, most=10):
    """A program of up to that many steps, whose last value and some others are outputs."""
    grown = Growth(data)
    conv2d(grown)
    to_tokens(grown)
    for _ in range(grown.number(1, most)):
        # What cannot be proved, or has no such scale, is no program.
        with contextlib.suppress(GraphError):
            grown.one_of(*STEPS)(grown)
    names = list(grown.values)[1:]
    outputs = {names[-1], *data.draw(st.lists(st.sampled_from(names), max_size=2))}
    return grown.builder.finish({f"out{i}": name for i, name in enumerate(sorted(outputs))})


def drawn_images(shape, seed=0):
    """Pixels at random, black and white ones at random, black, white; uint8 [4, C, H, W]."""
    rng = np.random.default_rng(seed)
    size = (1, *shape[1:])
    pixels = [rng.integers(0, 256, size), rng.choice([0, 255], size), np.zeros(size)]
    return np.concatenate([*pixels, np.full(size, 255)]).astype(np.uint8)
