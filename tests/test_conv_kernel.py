"""Operators over channels-last images against their definitions, and the pass that makes them."""

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder, Node
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops import (
    Add,
    AvgPool,
    Concat,
    Conv2d,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    Permute,
    Requantise,
    Reshape,
    Slice,
    UpsampleNearest,
)
from iqvit.ops.base import Op
from iqvit.ops.input import Input
from iqvit.tvm_backend.arrange import arrange
from iqvit.tvm_backend.channels_last import ChannelsLast
from iqvit.tvm_backend.compile import compile
from iqvit.tvm_backend.fold_saturation import fold_saturation
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As
from iqvit.tvm_backend.kernels.conv import channels_last
from iqvit.tvm_backend.kernels.conv_kernel import STAGE_BYTES, Window, block_of, task_of
from iqvit.tvm_backend.kernels.gemm_form import PANEL_BYTES
from iqvit.tvm_backend.kernels.isa import AVX2, AVX512_VNNI
from iqvit.tvm_backend.plan import plain_nodes, plan
from iqvit.tvm_backend.runtime import load
from iqvit.tvm_backend.targets import TARGETS, missing_features

SIMD = ("x86-vbmi", "x86-vnni", "x86-avx2")
GUARD = 64


def needs(target):
    missing = missing_features(TARGETS[target].features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")


class Loose(dict):
    """Nodes without the rule that a graph has one image: what a kernel needs of a graph."""

    def types_of(self, node):
        return [self[name].type for name in node.inputs]


def one_node(op, x, *constants, followers=()):
    """The node of an operator that reads `x` and constants, and of operators that follow it."""
    builder = GraphBuilder()
    builder.nodes["x"] = Node("x", Input(x.shape), (), x)
    inputs = [builder.nodes["x"], *(builder.constant(f"c{i}", c) for i, c in enumerate(constants))]
    nodes = [builder.add("out", op, inputs)]
    for follower, *others in followers:
        more = [builder.constant(f"{nodes[-1].name}_{i}", c) for i, c in enumerate(others)]
        nodes.append(builder.add("next", follower, [nodes[-1], *more]))
    return Loose(builder.nodes), Group(nodes[0], tuple(nodes[1:]))


def computed(graph, group, target, x):
    """What the fast kernel computes, with a guard behind it; None where there is none."""
    call = channels_last(graph, group, TARGETS[target].isa)
    if call is None:
        return None
    module = tvm.IRModule({"kernel": call.make("kernel")})
    kernel = tvm.compile(module, target=TARGETS[target].tvm_target())["kernel"]

    def array(operand):
        if isinstance(operand, As):
            value = x if operand.name == "x" else graph[operand.name].type.value
            return np.ascontiguousarray(value).reshape(operand.shape)
        return operand

    size = int(np.prod(call.shape))
    room = tvm.runtime.tensor(np.full(size + GUARD, 77, call.dtype))
    operands = map(tvm.runtime.tensor, map(array, call.operands))
    kernel(*operands, room._create_view(call.shape))
    result = room.numpy()
    assert (result[size:] == 77).all()
    return result[:size].reshape(group.last.type.shape)


def defined(graph, group, x):
    """What the operators' definitions give."""
    values = {"x": torch.from_numpy(x)}
    for node in group.nodes:
        read = [
            values[name] if name in values else torch.from_numpy(graph[name].type.value.copy())
            for name in node.inputs
        ]
        values[node.name] = node.op.run(*read)
    return values[group.last.name].numpy()


def check(op, x, *constants, target, followers=(), seed=0):
    """Compare on random pixels and on extreme ones; whether there is a fast kernel."""
    needs(target)
    graph, group = one_node(op, x, *constants, followers=followers)
    rng = np.random.default_rng(seed)
    for drawn in (rng.integers(x.lo, x.hi + 1, x.shape), rng.choice([x.lo, x.hi], x.shape)):
        pixels = drawn.astype(x.dtype)
        result = computed(graph, group, target, pixels)
        if result is None:
            return False
        np.testing.assert_array_equal(result, defined(graph, group, pixels))
    return True


def conv(shape, n, kernel, stride, padding, dilation=(1, 1), dtype="uint8", out="int8", seed=0):
    """A convolution over `[1, *shape]`, channels first, with a border of its own a channel."""
    rng = np.random.default_rng(seed)
    lo, hi = LIMITS[dtype]
    weight = rng.integers(-127, 128, (n, shape[0], *kernel)).astype(np.int8)
    weight[0] = 127
    bias = rng.integers(-9999, 9999, n).astype(np.int32)
    m = rng.integers(2**29, 2**31 - 1, n).astype(np.int32)
    borders = tuple(rng.integers(lo, hi + 1, shape[0]).tolist())
    numbers = (32, 5, out) if out == "int16" else (39, 3, out)
    op = Conv2d(stride, padding, dilation, 1, borders, *numbers, *LIMITS[out])
    return op, IntType(dtype, (1, *shape), lo, hi), weight, bias, m


def last(kind):
    """The type of an image channels-last."""
    _, c, h, w = kind.shape
    return IntType(kind.dtype, (1, h, w, c), kind.lo, kind.hi)


def check_conv(*args, target, followers=(), planes=False, **options):
    op, x, *constants = conv(*args, **options)
    image = x if planes else last(x)
    wrapped = ChannelsLast(op, planes)
    return check(wrapped, image, *constants, target=target, followers=followers)


SHAPES = [
    ((8, 9, 11), 5, (3, 3), (1, 1), (1, 1)),
    ((3, 12, 13), 70, (3, 3), (2, 2), (1, 1)),
    ((5, 7, 9), 20, (1, 1), (2, 2), (0, 0)),
    ((4, 3, 3), 33, (3, 3), (1, 1), (0, 0)),
    ((12, 10, 7), 130, (5, 3), (1, 2), (2, 1), (2, 1)),
    ((6, 8, 8), 8, (3, 3), (1, 1), (2, 2), (2, 2)),
    ((8, 20, 20), 64, (1, 1), (2, 2), (0, 0)),
    ((1, 1, 40), 17, (1, 7), (1, 1), (0, 3)),
]
TYPES = [("uint8", "int8"), ("int8", "uint8"), ("int8", "int16"), ("uint8", "uint8")]


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize("place", range(len(SHAPES)), ids=lambda place: str(SHAPES[place]))
def test_convolutions_of_odd_shapes(place, target):
    dtype, out = TYPES[(place + SIMD.index(target)) % len(TYPES)]
    assert check_conv(*SHAPES[place], dtype=dtype, out=out, target=target)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_convolutions_of_any_shape(data):
    def draw(lo, hi):
        return data.draw(st.integers(lo, hi))

    kernel, stride, dilation = [(draw(1, top), draw(1, top)) for top in (3, 3, 2)]
    padding = (draw(0, 2), draw(0, 2))
    shape = (draw(1, 70), draw(5, 20), draw(5, 20))
    dtype = data.draw(st.sampled_from(["uint8", "int8"]))
    planes = data.draw(st.booleans())
    geometry = (shape, draw(1, 140), kernel, stride, padding, dilation)
    target = data.draw(st.sampled_from(SIMD))
    assert check_conv(*geometry, dtype=dtype, planes=planes, target=target)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(("channels", "dtype"), [(1, "int8"), (3, "uint8"), (4, "int8")])
def test_images_that_come_in_planes(channels, dtype, target):
    args = ((channels, 11, 37), 5, (3, 3), (2, 2), (1, 1))
    assert check_conv(*args, dtype=dtype, target=target, planes=True)


@pytest.mark.parametrize("target", SIMD)
def test_a_convolution_and_what_follows_it(target):
    rng = np.random.default_rng(5)
    residual = rng.integers(-999, 999, (1, 9, 11, 70)).astype(np.int16)
    gate = rng.integers(-99, 99, (1, 1, 1, 70)).astype(np.int8)
    add = Add(2**28, 3 * 2**27, 2**29, 30, "int16", *LIMITS["int16"])
    multiply = Multiply(0, 3, 2**24, 28, 1, "int16", *LIMITS["int16"])
    relu = Requantise(1, 0, 0, "int16", 0, 32767)
    followers = [(add, residual), (multiply, gate), (relu,)]
    args = ((6, 9, 11), 70, (3, 3), (1, 1), (1, 1))
    assert check_conv(*args, dtype="uint8", out="int16", target=target, followers=followers)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("dtype", "entry"), [("uint8", "int8"), ("int8", "uint8"), ("uint8", "int16")]
)
def test_a_convolution_and_a_table_of_its_results(dtype, entry, target):
    table = np.random.default_rng(3).permutation(256).astype(np.uint8)
    table = table.view(entry) if entry != "int16" else table.astype(np.int16) * 99
    args = ((8, 9, 11), 70, (3, 3), (1, 1), (1, 1))
    assert check_conv(*args, out=dtype, target=target, followers=[(Lookup(), table)])


def test_a_convolution_with_groups_is_left_to_the_plain_lowering():
    op, x, weight, bias, m = conv((4, 5, 5), 6, (3, 3), (1, 1), (1, 1))
    grouped = Conv2d(**{**op.attributes(), "groups": 2})
    assert not check(ChannelsLast(grouped), last(x), weight[:, :2], bias, m, target="x86-avx2")


@pytest.mark.parametrize("isa", [AVX512_VNNI, AVX2], ids=lambda isa: isa.name)
def test_blocks_fit_a_row_and_the_registers(isa):
    for size in (*range(1, 40), 160):
        window = Window((size, size, 64), (3, 3), (1, 1), (1, 1), (1, 1))
        block = block_of(isa, window, 256)
        assert 1 <= block.rows <= size
        assert block.vectors in (isa.vectors, isa.vectors // 2)
        assert block.vectors * block.rows <= isa.vectors * isa.rows
    narrow = block_of(isa, Window((80, 80, 64), (3, 3), (1, 1), (1, 1), (1, 1)), 2 * isa.lanes)
    assert narrow.vectors == 2


def test_a_task_is_large_but_there_are_enough():
    isa = AVX512_VNNI
    for size, channels in ((160, 64), (20, 512), (7, 2048), (1, 64)):
        window = Window((size, size, channels), (3, 3), (1, 1), (1, 1), (1, 1))
        rows, panels = task_of(window, isa, channels)
        assert (
            window.staged_rows(rows) * window.staged_width() * channels <= STAGE_BYTES or rows == 1
        )
        assert panels == 1 or panels * isa.panel * 9 * channels <= PANEL_BYTES
        assert size == 1 or -(-size // rows) * -(-channels // (panels * isa.panel)) >= 6


def pool(kernel, stride, padding, zeros, scale, out):
    qin, qout = QParams.of(0.02, zeros[0]), QParams.of(scale, zeros[1])
    return AvgPool.of(kernel, stride, padding, True, qin, qout, out)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("op", "dtype", "shape"),
    [
        (MaxPool((3, 3), (2, 2), (1, 1)), "uint8", (1, 11, 12, 70)),
        (MaxPool((3, 2), (1, 2), (1, 0)), "int16", (1, 5, 6, 5)),
        (MaxPool((5, 5), (1, 1), (2, 2)), "int8", (1, 4, 4, 64)),
        (pool((2, 2), (2, 2), (0, 0), (128, 100), 0.02, "uint8"), "uint8", (1, 7, 8, 37)),
        (pool((2, 2), (2, 2), (0, 0), (3, -5), 0.0002, "int16"), "int8", (1, 7, 8, 16)),
        (pool((4, 2), (2, 3), (0, 0), (-3, 5), 9.0, "int8"), "int16", (1, 9, 8, 16)),
        (UpsampleNearest(8, 6), "uint8", (1, 4, 3, 37)),
        (UpsampleNearest(7, 5), "int16", (1, 4, 3, 64)),
    ],
    ids=str,
)
def test_pooling_and_upsampling(op, dtype, shape, target):
    assert check(ChannelsLast(op), IntType(dtype, shape, *LIMITS[dtype]), target=target)


@pytest.mark.parametrize(
    "op",
    [
        pool((3, 3), (1, 1), (0, 0), (3, 5), 0.02, "int8"),
        pool((2, 2), (2, 2), (1, 1), (3, 5), 0.02, "int8"),
    ],
)
def test_averages_that_need_a_division_are_left_to_the_plain_lowering(op):
    x = IntType("int8", (1, 6, 6, 4), -128, 127)
    assert not check(ChannelsLast(op), x, target="x86-avx2")


class Network:
    """A small network with every kind of operator that the pass knows."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.builder = GraphBuilder()
        self.x = self.builder.add("image", Input((1, 3, 21, 18)), [])

    def conv(self, x, n, kernel=1, stride=1, lo=0):
        """A convolution with ReLU."""
        c = x.type.shape[1]
        pad = (kernel // 2, kernel // 2)
        op, _, *constants = conv((c, 9, 9), n, (kernel, kernel), (stride, stride), pad, out="uint8")
        op = Conv2d(**{**op.attributes(), "pad_values": (7,), "lo": lo})
        return self.add(op, x, *constants)

    def add(self, op: Op, *inputs):
        nodes = [
            self.builder.constant("constant", value) if isinstance(value, np.ndarray) else value
            for value in inputs
        ]
        return self.builder.add(op.NAME, op, nodes)

    def table(self):
        return self.rng.integers(0, 256, 256).astype(np.uint8)

    def finish(self, **outputs):
        return self.builder.finish({name: node.name for name, node in outputs.items()})


def network():
    net = Network()
    stem = net.add(MaxPool((3, 3), (2, 2), (1, 1)), net.conv(net.x, 16, 3, 2))
    both = Add(2**29, 2**29, 0, 30, "uint8", *LIMITS["uint8"])
    block = net.add(both, net.conv(net.conv(stem, 16, 3), 16, 3), net.conv(stem, 16))
    shifted = net.add(both, block, net.rng.integers(0, 99, (16, 1, 1)).astype(np.uint8))
    gated = net.add(Lookup(), shifted, net.table())
    small = net.conv(gated, 24, 3, 2)
    large = net.add(UpsampleNearest(6, 5), small)
    joined = net.add(Concat(1), large, net.add(Slice(1, 2, 14, 3), gated))
    fused = net.add(Lookup(), net.conv(joined, 20), net.table())
    tokens = net.add(Permute((0, 2, 1)), net.add(Reshape((1, 20, 30)), fused))
    weight = net.rng.integers(-127, 128, (20, 20)).astype(np.int8)
    linear = Linear(38, 0, "uint8", *LIMITS["uint8"])
    product = net.add(linear, tokens, weight, np.zeros(20, np.int32), np.full(20, 2**30, np.int32))
    image = net.add(Reshape((1, 20, 6, 5)), net.add(Permute((0, 2, 1)), product))
    halved = net.add(pool((2, 2), (2, 2), (0, 0), (3, 5), 0.02, "uint8"), net.conv(image, 12, 3))
    return net.finish(tokens=product, halved=halved, gated=gated)


@pytest.mark.parametrize("target", [*SIMD, "portable"])
def test_a_network_gives_the_integers_of_the_interpreter(target, tmp_path):
    needs(target)
    graph = network()
    images = np.random.default_rng(1).integers(0, 256, (3, 1, 3, 21, 18)).astype(np.uint8)
    images[1], images[2] = 0, np.random.default_rng(2).choice([0, 255], images[2].shape)
    artifact = load(compile(graph, tmp_path / "artifact", target))
    for x in map(torch.from_numpy, images):
        expected, results = run(graph, x), artifact(x)
        assert list(results) == list(expected)
        for name, value in expected.items():
            assert torch.equal(results[name], value), name


def test_nothing_is_moved_between_the_orders_but_outputs():
    graph = arrange(network(), TARGETS["x86-vnni"])
    moved = [node.name for node in graph if isinstance(node.op, Permute)]
    assert len(moved) == 2  # `halved` and `gated`, which leave as they are in the graph
    assert set(moved) <= set(graph.outputs.values())
    steps = plan(graph, TARGETS["x86-vnni"])
    assert plain_nodes(steps) == []


def test_a_relu_is_folded_into_what_it_reads():
    net = Network()
    relu = Requantise(1, 0, 0, "uint8", 9, 255)
    first = net.add(relu, net.conv(net.x, 8, 3))
    both = Add(2**29, 2**29, 0, 30, "uint8", 3, 250)
    chain = net.add(relu, net.add(Requantise(1, 0, 0, "uint8", 0, 99), net.add(both, first, first)))
    again = net.add(relu, net.conv(first, 8))
    kept = net.add(Requantise(1, 0, 0, "uint8", 200, 255), net.conv(first, 8, lo=0))
    graph = net.finish(first=first, chain=chain, again=again, kept=kept)
    folded = fold_saturation(graph)
    assert sum(isinstance(node.op, Requantise) for node in folded) == 0
    limits = [(folded[name].op.lo, folded[name].op.hi) for name in folded.outputs.values()]
    assert limits == [(9, 255), (9, 99), (9, 255), (200, 255)]
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 21, 18)).astype(np.uint8))
    expected = run(graph, x)
    assert all(torch.equal(value, expected[name]) for name, value in run(folded, x).items())


def test_a_relu_of_what_others_read_too_is_kept():
    net = Network()
    x = net.conv(net.x, 8, 3)
    disjoint = Requantise(1, 0, 0, "uint8", 101, 255)
    low = net.add(Add(2**29, 2**29, 0, 30, "uint8", 0, 100), x, x)
    graph = net.finish(
        x=x,
        relu=net.add(Requantise(1, 0, 0, "uint8", 9, 255), x),
        scaled=net.add(Requantise(3, 0, 1, "uint8", 0, 255), net.conv(x, 8)),
        disjoint=net.add(disjoint, low),
    )
    assert fold_saturation(graph) is graph


def test_a_chain_of_saturations_is_folded_as_far_as_its_limits_overlap():
    net = Network()
    x = net.conv(net.x, 8, 3)
    for lo, hi in ((0, 10), (5, 20), (15, 30)):
        x = net.add(Requantise(1, 0, 0, "uint8", lo, hi), x)
    graph = net.finish(x=x)
    folded = fold_saturation(graph)
    assert sum(isinstance(node.op, Requantise) for node in folded) == 1
    pixels = torch.full((1, 3, 21, 18), 77, dtype=torch.uint8)
    assert torch.equal(run(folded, pixels)["x"], run(graph, pixels)["x"])


def test_rows_that_only_look_like_flattened_images():
    net = Network()
    windows = net.add(Reshape((4, 18, 42)), net.conv(net.x, 8, 3))
    rows = net.add(Permute((0, 2, 1)), windows)
    weight = net.rng.integers(-127, 128, (6, 18)).astype(np.int8)
    linear = Linear(38, 0, "uint8", *LIMITS["uint8"])
    product = net.add(linear, rows, weight, np.zeros(6, np.int32), np.full(6, 2**30, np.int32))
    back = net.add(Reshape((1, 6, 168)), net.add(Permute((0, 2, 1)), product))
    graph = net.finish(back=back)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 21, 18)).astype(np.uint8))
    arranged = arrange(graph, TARGETS["x86-vnni"])
    assert arranged is not graph
    assert torch.equal(run(arranged, x)["back"], run(graph, x)["back"])


def test_the_pass_leaves_other_graphs_alone():
    graph = network()
    assert arrange(graph, TARGETS["portable"]) is graph
    net = Network()
    patches = net.add(*_patch_embedding(net))
    alone = net.finish(patches=patches)
    assert arrange(alone, TARGETS["x86-vnni"]) is alone


def _patch_embedding(net):
    op, _, *constants = conv((3, 9, 9), 8, (3, 3), (3, 3), (0, 0))
    return op, net.x, *constants


def test_the_plain_lowering_of_a_channels_last_operator():
    op, x, *constants = conv((4, 6, 5), 6, (3, 3), (1, 1), (1, 1))
    wrapped = ChannelsLast(op)
    types = [last(x), *map(constant_type, constants)]
    assert wrapped.infer(*types).shape == (1, 6, 5, 6)
    assert wrapped.macs(*types) == 6 * 5 * 6 * 36
    assert wrapped.accumulator(*types) == op.accumulator(x, *types[1:])
    assert wrapped.NAME == "conv2d"
