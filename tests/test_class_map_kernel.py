"""The kernels of a segmentation decoder: class maps, unit lengths, patches times classes."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from iqvit.interpret import evaluate
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops import (
    Argmax,
    L2Normalize,
    LambdaShiftGelu,
    LayerNorm,
    Matmul,
    Permute,
    Requantise,
    Reshape,
    Slice,
    UpsampleBilinear,
)
from iqvit.ops.base import Op
from iqvit.ops.input import Input
from iqvit.tvm_backend.lower import lower_steps
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import plain_nodes, plan
from iqvit.tvm_backend.targets import TARGETS, missing_features

SIMD = ("x86-vbmi", "x86-vnni", "x86-avx2")
targets = pytest.mark.parametrize("target", SIMD)
# Integers that fill a type of 8, 16 or 20 bits, from the uint8 of the image.
SPREAD = {"int8": (1, -128), "int16": (257, -32768), "int32": (4112, -524280)}


def chain(shape: tuple[int, ...], dtype: str, *ops: Op) -> IntGraph:
    """A graph that reads an image of `shape` as integers of a type, then the operators in order."""
    builder = GraphBuilder()
    node = builder.add("image", Input(shape), [])
    factor, offset = SPREAD[dtype]
    node = builder.add("x", Requantise(factor, offset, 0, dtype, *LIMITS[dtype]), [node])
    for index, op in enumerate(ops):
        node = builder.add(f"op{index}", op, [node])
    return builder.finish({"out": node.name})


def images(shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    few = rng.integers(100, 103, shape).astype(np.uint8)  # ties between classes
    ends = rng.choice([0, 255], shape).astype(np.uint8)
    return [rng.integers(0, 256, shape).astype(np.uint8), few, ends, np.full(shape, 128, np.uint8)]


def compiled(graph: IntGraph, target: str, plain: tuple[str, ...] = ()):
    """The graph as a function of an image; only `plain` nodes have no kernel."""
    chosen = TARGETS[target]
    missing = missing_features(chosen.features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    steps = plan(graph, chosen)
    assert tuple(plain_nodes(steps)) == plain
    machine = relax.VirtualMachine(build(lower_steps(graph, steps), chosen), tvm.cpu())
    return lambda image: machine["main"](tvm.runtime.tensor(image))[0].numpy()


def check(graph: IntGraph, target: str, plain: tuple[str, ...] = ()) -> None:
    """The compiled graph gives the integers of the interpreter."""
    function = compiled(graph, target, plain)
    for image in images(graph.input.type.shape):
        expected = evaluate(graph, torch.from_numpy(image))["out"]
        np.testing.assert_array_equal(function(image), expected.numpy())


@targets
@pytest.mark.parametrize(
    ("shape", "size", "dtype"),
    [
        ((1, 11, 2, 3), (32, 48), "int16"),
        ((1, 3, 5, 7), (23, 37), "int16"),
        ((1, 2, 4, 17), (4, 40), "int8"),
        ((1, 256, 1, 8), (3, 16), "int32"),
        ((1, 4, 3, 1), (6, 16), "int8"),
    ],
)
def test_class_maps(shape, size, dtype, target):
    indices = "uint8" if dtype != "int32" else "int32"
    keep = int(dtype == "int8")
    check(chain(shape, dtype, UpsampleBilinear(*size), Argmax(1, keep, indices)), target)


@targets
def test_class_maps_read_logits_where_the_decoder_left_them(target):
    ops = (
        Permute((0, 2, 1)),
        Reshape((1, 5, 4, 6)),
        UpsampleBilinear(64, 96),
        Argmax(1, 0, "uint8"),
    )
    check(chain((1, 24, 5), "int16", *ops), target)


@targets
def test_class_maps_that_the_kernel_leaves_to_the_plain_lowering(target):
    smaller = chain((1, 3, 4, 30), "int16", UpsampleBilinear(8, 40), Argmax(1, 0, "uint8"))
    check(smaller, target, ("op0", "op1"))
    across = chain((1, 3, 4, 4), "int16", UpsampleBilinear(8, 16), Argmax(2, 0, "uint8"))
    check(across, target, ("op0", "op1"))


@targets
@pytest.mark.parametrize(
    ("shape", "dtype", "out", "eps"),
    [
        ((1, 17, 64), "int16", "int8", 1e-12),
        ((1, 5, 33), "int16", "int16", 0.0),
        ((1, 3, 70), "int8", "uint8", 2.0),
        ((1, 9, 24), "int32", "int16", 0.0),
        ((1, 2), "int8", "int16", 0.0),
    ],
)
def test_unit_lengths(shape, dtype, out, eps, target):
    scale = 1 / 32767 if out == "int16" else 1 / 127
    qout = QParams.of(scale, 128 if out == "uint8" else 0)
    check(chain(shape, dtype, L2Normalize.of(eps, QParams.of(0.03), qout, out)), target)


@targets
def test_unit_lengths_of_small_rows(target):
    """Rows of a few steps, of zeros among them: the scaling of their squares is largest."""
    builder = GraphBuilder()
    node = builder.add("image", Input((1, 40, 24)), [])
    node = builder.add("x", Requantise(1, -101, 0, "int16", -2, 2), [node])
    op = L2Normalize.of(0.0, QParams.of(0.03), QParams.of(1 / 32767), "int16")
    node = builder.add("op0", op, [node])
    check(builder.finish({"out": node.name}), target)


@targets
@pytest.mark.parametrize(
    ("patches", "classes", "depth", "out"),
    [(6, 11, 64, "int16"), (5, 3, 70, "int8"), (1, 19, 33, "int32"), (4, 1, 96, "int16")],
)
def test_patches_times_classes(patches, classes, depth, out, target):
    """Both are parts of one value, as the tokens of a mask decoder are."""
    builder = GraphBuilder()
    shape = (1, patches + classes, depth)
    node = builder.add("image", Input(shape), [])
    tokens = builder.add("x", Requantise(1, -128, 0, "int8", -128, 127), [node])
    left = builder.add("left", Slice(1, 0, patches, 1), [tokens])
    right = builder.add("right", Slice(1, patches, patches + classes, 1), [tokens])
    turned = builder.add("turned", Permute((0, 2, 1)), [right])
    unit = QParams.of(0.05)
    op = Matmul.of(unit, unit, QParams.of(0.08 if out == "int16" else 2.0, 3), out)
    if out == "int32":
        op = Matmul(1, 0, 0, "int32", *LIMITS["int32"])
    product = builder.add("product", op, [left, turned])
    check(builder.finish({"out": product.name}), target)


@targets
@pytest.mark.parametrize("count", [2, 11, 19, 150])
def test_layernorm_over_classes(count, target):
    rng = np.random.default_rng(1)
    x = IntType("int16", (1, 37, count), *LIMITS["int16"])
    gain, bias = rng.uniform(-2, 2, count), rng.uniform(-9, 9, count)
    qparams = QParams.of(0.00005), QParams.of(0.0006)
    op, g, b = LayerNorm.of(x, qparams[0], gain, bias, 1e-5, qparams[1], "int16")
    builder = GraphBuilder()
    node = builder.add("image", Input(x.shape), [])
    node = builder.add("x", Requantise(257, -32768, 0, "int16", *LIMITS["int16"]), [node])
    constants = [builder.constant(k, v) for k, v in (("gain", g), ("bias", b))]
    node = builder.add("op0", op, [node, *constants])
    check(builder.finish({"out": node.name}), target)


@targets
def test_lambda_shiftgelu_as_a_table(target):
    builder = GraphBuilder()
    node = builder.add("image", Input((1, 3, 43)), [])
    node = builder.add("x", Requantise(1, -128, 0, "int8", -128, 127), [node])
    qout = QParams.of(0.0003, -4)
    op, *values = LambdaShiftGelu.of(QParams.of(6 / 127), qout, "int16")
    constants = [builder.constant(k, v) for k, v in zip("mz", values, strict=True)]
    node = builder.add("op0", op, [node, *constants])
    check(builder.finish({"out": node.name}), target)
