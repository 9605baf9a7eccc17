"""The lowered program of real stages: equal to the interpreter on every target, and well fused."""

import numpy as np
import pytest
import torch
from loose import program
from timm.models.vision_transformer import VisionTransformer

from iqvit.calibration.calibrate import calibrate
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.convert import convert
from iqvit.cost import cost
from iqvit.errors import TargetError
from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS, QParams
from iqvit.ops import (
    Add,
    Attention,
    Conv2d,
    Linear,
    Permute,
    Rectified,
    Requantise,
    Reshape,
    Slice,
)
from iqvit.ops.input import Input
from iqvit.tvm_backend.arrange import arrange
from iqvit.tvm_backend.check import assert_no_float
from iqvit.tvm_backend.compile import compile
from iqvit.tvm_backend.functions import functions_of
from iqvit.tvm_backend.fuse import groups
from iqvit.tvm_backend.layout import View, affine, natural, tail_strides, view_of
from iqvit.tvm_backend.lower import lower, lower_named
from iqvit.tvm_backend.plan import plain_nodes, plan
from iqvit.tvm_backend.runtime import load
from iqvit.tvm_backend.targets import HOST, TARGETS, missing_features, resolve
from iqvit.tvm_backend.threads import prepare_threads, set_threads
from iqvit.tvm_backend.together import Together

MODELS = {
    "plain": {"embed_dim": 64, "num_heads": 2},
    "odd": {"embed_dim": 60, "num_heads": 3, "init_values": 0.1, "reg_tokens": 2, "mlp_ratio": 2.5},
    "pooled": {"embed_dim": 48, "num_heads": 3, "global_pool": "avg", "class_token": False},
}


def converted(name):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, depth=2, num_classes=11, **MODELS[name])
    captured = capture(model.eval(), (1, 3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    canonical = canonicalize(captured)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    return convert(canonical, calibrate(canonical, [images]))


@pytest.fixture(scope="module")
def graphs():
    return {name: converted(name) for name in MODELS}


@pytest.fixture(params=MODELS)
def graph(request, graphs):
    return graphs[request.param]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("plain", "x86-avx2"),
        ("plain", "x86-vnni"),
        ("odd", "x86-vnni"),
        ("odd", "portable"),
        ("pooled", "x86-avx2"),
    ],
)
def test_every_target_gives_the_integers_of_the_interpreter(graphs, name, target, tmp_path):
    graph = graphs[name]
    missing = missing_features(TARGETS[target].features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    images[2], images[3] = 0, rng.choice([0, 255], images[3].shape)
    x = torch.from_numpy(images)
    expected = run(graph, x)
    artifact = load(compile(graph, tmp_path / "artifact", target))
    for threads in range(1, min(2, prepare_threads()) + 1):
        set_threads(threads)
        results = artifact(x)
        assert results.keys() == expected.keys()
        for output, value in expected.items():
            assert results[output].dtype == value.dtype
            assert torch.equal(results[output], value)


def test_fast_kernels_take_all_that_costs(graph):
    steps = plan(graph, TARGETS["x86-vnni"])
    plain = [graph[name].op.NAME for name in plain_nodes(steps)]
    assert set(plain) <= {"mean"}
    assert sum(step.kernel == "attention" for step in steps) == 2
    assert sum("add" in step.kernel.split("_") for step in steps if "gemm" in step.kernel) == 4
    copied = [step.group.last.name for step in steps if step.kernel == "copy"]
    assert not any("attn" in name or "embed" in name for name in copied)


def test_equal_layers_share_their_functions(graph):
    module = lower(graph, "x86-vnni")
    assert_no_float(module)
    steps = plan(graph, TARGETS["x86-vnni"])
    assert len(module.get_global_vars()) < 0.7 * len(steps)


@pytest.mark.parametrize("target", ["portable", "x86-vnni", "arm64-neon"])
def test_functions_have_all_products_between_them(graph, target):
    arranged = arrange(graph, TARGETS[target])
    steps = plan(arranged, TARGETS[target])
    module, names = lower_named(arranged, steps)
    found = functions_of(arranged, steps, module, names)
    assert {*found, "main"} == {name.name_hint for name in module.get_global_vars()}
    assert sum(function["macs"] for function in found.values()) == cost(graph).macs
    assert all(function["bytes"] > 0 for function in found.values())


def test_an_unknown_target_is_refused(graph):
    with pytest.raises(TargetError, match="unknown target 'vax'"):
        lower(graph, "vax")


def image(builder, *shape):
    return builder.add("x", Input(shape), [])


def linear(builder, x, n, name="linear"):
    rng = np.random.default_rng(n)
    weight = builder.constant("w", rng.integers(-9, 9, (n, x.type.shape[-1])).astype(np.int8))
    bias = builder.constant("b", np.zeros(n, np.int32))
    m = builder.constant("m", np.full(n, 2**30, np.int32))
    return builder.add(name, Linear(33, 0, "int16", *LIMITS["int16"]), [x, weight, bias, m])


def add_op():
    return Add(2**29, 2**29, 0, 30, "int16", *LIMITS["int16"])


def test_an_add_joins_the_product_that_only_it_reads():
    builder = GraphBuilder()
    x = image(builder, 1, 4, 8)
    first, second = linear(builder, x, 6, "first"), linear(builder, x, 6, "second")
    both = builder.add("sum", add_op(), [first, second])
    graph = builder.finish({"out": both.name})
    assert [[n.name for n in g.nodes] for g in groups(graph)] == [["second"], ["first", "sum"]]


def test_what_is_read_twice_or_returned_is_not_fused():
    builder = GraphBuilder()
    x = image(builder, 1, 4, 8)
    first, second = linear(builder, x, 6, "first"), linear(builder, x, 6, "second")
    both = builder.add("sum", add_op(), [first, second])
    again = builder.add("again", add_op(), [both, first])
    graph = builder.finish({"out": again.name, "seen": second.name})
    assert all(len(group.nodes) == 1 for group in groups(graph))


def test_an_add_of_a_value_to_itself_is_not_fused():
    builder = GraphBuilder()
    first = linear(builder, image(builder, 1, 4, 8), 6)
    both = builder.add("sum", add_op(), [first, first])
    graph = builder.finish({"out": both.name})
    assert all(len(group.nodes) == 1 for group in groups(graph))


def test_a_value_that_is_read_from_far_behind_is_stored():
    builder = GraphBuilder()
    x = builder.add("signed", Requantise(1, -128, 0, "int8", -128, 127), [image(builder, 1, 9, 8)])
    split = builder.add("split", Reshape((1, 9, 2, 4)), [x])
    heads = builder.add("heads", Permute((0, 2, 1, 3)), [split])
    unit = QParams.of(0.05)
    attended = builder.add(
        "attended", Attention.of(*[unit] * 4, 0.2, 8, "int8"), [heads, heads, heads]
    )
    merged = builder.add("merged", Permute((0, 2, 1, 3)), [attended])
    rows = builder.add("rows", Reshape((1, 9, 8)), [merged])
    turned = builder.add("turned", Permute((0, 2, 1)), [rows])
    graph = builder.finish({"out": turned.name})
    steps = plan(graph, TARGETS["x86-vnni"])
    assert [step.group.last.name for step in steps] == ["signed", "merged", "turned"]
    equal_to_the_interpreter(graph)


def test_products_of_the_same_rows_are_one_where_attention_reads_them(graphs):
    graph = graphs["plain"]
    arranged = arrange(graph, TARGETS["x86-vnni"])
    joined = [node for node in arranged if isinstance(node.op, Together)]
    assert [len(node.op.ops) for node in joined] == [3, 3]
    assert cost(arranged).macs == cost(graph).macs
    steps = plan(arranged, TARGETS["x86-vnni"])
    made = [step.group.last.name for step in steps]
    assert all(node.name in made for node in joined)
    parts = [node for node in arranged if node.inputs and node.inputs[0] == joined[0].name]
    assert [node.type.shape[-1] for node in parts] == [64] * 3
    assert not any(node.name in made for node in parts)
    image = torch.randint(0, 256, graph.input.type.shape, dtype=torch.uint8)
    expected, found = run(graph, image, trace=True), run(arranged, image, trace=True)
    for name in [*graph.outputs, *(node.name for node in parts)]:
        assert torch.equal(found[name], expected[name])
    # 60 columns are no whole panels.
    odd = arrange(graphs["odd"], TARGETS["x86-vnni"])
    assert not any(isinstance(node.op, Together) for node in odd)


def test_moves_behind_what_no_kernel_takes_are_all_made():
    builder = GraphBuilder()
    weight = builder.constant("w", np.full((2, 1, 1, 1), 3, np.int8))
    bias = builder.constant("b", np.zeros(2, np.int32))
    m = builder.constant("m", np.full(2, 2**30, np.int32))
    depthwise = Conv2d((1, 1), (0, 0), (1, 1), 2, (0,), 33, 0, "int8", -128, 127)
    filtered = builder.add("filtered", depthwise, [image(builder, 1, 2, 3, 4), weight, bias, m])
    last = builder.add("last", Permute((0, 2, 3, 1)), [filtered])
    rows = builder.add("rows", Reshape((1, 12, 2)), [last])
    turned = builder.add("turned", Permute((0, 2, 1)), [rows])
    equal_to_the_interpreter(builder.finish({"out": turned.name}))


def test_a_row_with_a_scale_for_every_element():
    builder = GraphBuilder()
    wide = Requantise(1, 0, 0, "int16", *LIMITS["int16"])
    x = builder.add("wide", wide, [image(builder, 1, 1, 40)])
    out = QParams.of(np.linspace(0.02, 0.04, 40), 3, -1)
    op, *constants = Rectified.of("gelu", QParams.of(0.02), out, "uint8")
    read = [builder.constant("c", value) for value in constants]
    gelu = builder.add("gelu", op, [x, *read])
    equal_to_the_interpreter(builder.finish({"out": gelu.name}))


def equal_to_the_interpreter(graph):
    pixels = np.random.default_rng(0).integers(0, 256, graph.input.type.shape).astype(np.uint8)
    (found,) = program(graph, resolve(HOST).name)(pixels)
    (expected,) = run(graph, torch.from_numpy(pixels)).values()
    assert np.array_equal(found, expected.numpy())


def test_layout_operators_are_strides_of_what_they_read():
    builder = GraphBuilder()
    x = image(builder, 1, 5, 24)
    split = builder.add("split", Reshape((1, 5, 3, 2, 4)), [x])
    turned = builder.add("turned", Permute((2, 0, 3, 1, 4)), [split])
    taken = builder.add("taken", Slice(0, 1, 2, 1), [turned])
    one = builder.add("one", Reshape((1, 2, 5, 4)), [taken])
    graph = builder.finish({"out": one.name})
    assert view_of(graph, "one") == View("x", 8, (0, 4, 24, 1))
    assert view_of(graph, "x") == View("x", 0, (120, 24, 1))


def test_a_view_goes_no_farther_than_strides_reach():
    builder = GraphBuilder()
    x = image(builder, 1, 4, 6)
    turned = builder.add("turned", Permute((0, 2, 1)), [x])
    flat = builder.add("flat", Reshape((24,)), [turned])
    graph = builder.finish({"out": flat.name})
    assert view_of(graph, "flat") == View("turned", 0, (1,))
    assert affine(natural((2, 3)).T) == (1, 3)
    assert affine(np.array([0, 1, 3])) is None


def test_a_tail_says_where_the_results_of_its_head_go():
    builder = GraphBuilder()
    x = image(builder, 1, 2, 5, 4)
    turned = builder.add("turned", Permute((0, 2, 1, 3)), [x])
    flat = builder.add("flat", Reshape((1, 5, 8)), [turned])
    builder.finish({"out": flat.name})
    assert tail_strides(x, (turned, flat)) == (0, 4, 8, 1)
    mixed = builder.add("mixed", Permute((0, 2, 1)), [builder.add("r", Reshape((1, 4, 10)), [x])])
    assert tail_strides(x, (builder.nodes["r"], mixed)) is None
