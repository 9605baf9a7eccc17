"""Rows at their own scales, in one kernel with what comes before: the integers of the operators."""

import importlib

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from iqvit.interpret import run
from iqvit.intgraph import GraphBuilder
from iqvit.inttype import LIMITS, QParams
from iqvit.ops import LayerNorm, RowLinear, RowPeak, RowQuantise
from iqvit.ops.add import Add
from iqvit.ops.input import Input
from iqvit.ops.linear import Linear
from iqvit.ops.reshape import Reshape
from iqvit.tvm_backend.fuse import groups
from iqvit.tvm_backend.kernels.balance import THREADS, parts_of, slowness
from iqvit.tvm_backend.lower import lower_steps
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import plan
from iqvit.tvm_backend.targets import TARGETS, missing_features

SIMD = ("x86-vbmi", "x86-vnni", "x86-avx2")
SIDES = {"both sides": (0, 0), "one side": (1, -90)}


@pytest.fixture(params=SIMD)
def target(request):
    missing = missing_features(TARGETS[request.param].features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    return TARGETS[request.param]


class Rows:
    """A graph that scales the rows of 16-bit values made of an image's lines."""

    def __init__(self, rows, count, side, normalised):
        rng = np.random.default_rng(rows)
        self.builder = builder = GraphBuilder()
        pixels = builder.add("pixels", Input((1, 3, rows, 8)), [])
        x = builder.add("lines", Reshape((1, 3 * rows, 8)), [pixels])
        weight = builder.constant("w", rng.integers(-127, 128, (count, 8)).astype(np.int8))
        bias = builder.constant("b", rng.integers(-9999, 9999, count).astype(np.int32))
        mult = builder.constant("m", np.full(count, 2**30, np.int32))
        lo = -90 if side[0] and not normalised else -32768  # what the offset promises
        wide = builder.add("wide", Linear(32, 0, "int16", lo, 32767), [x, weight, bias, mult])
        self.last = self._normalised(wide, count, side, rng) if normalised else wide
        self.peak = builder.add("peak", RowPeak(*side), [self.last])
        self.scaled = builder.add("scaled", RowQuantise(*side), [self.last, self.peak])

    def _normalised(self, wide, count, side, rng):
        gain, shift = rng.uniform(0.5, 2, count), rng.uniform(-1, 1, count)
        out = QParams.of(3e-4)
        op, *constants = LayerNorm.of(wide.type, QParams.of(0.01), gain, shift, 1e-6, out, "int16")
        nodes = [self.builder.constant(f"n{i}", value) for i, value in enumerate(constants)]
        if side[0]:
            op = LayerNorm(**{**vars(op), "lo": -90})
        return self.builder.add("normal", op, [wide, *nodes])

    def multiply(self, columns):
        """The scaled rows times a matrix, and the same of the lines added: a residual sum."""
        rng, builder = np.random.default_rng(columns), self.builder
        count = self.last.type.shape[-1]
        weight = builder.constant("w1", rng.integers(-127, 128, (columns, count)).astype(np.int8))
        bias = builder.constant("b1", rng.integers(-(2**14), 2**14, columns).astype(np.int32))
        factors = builder.constant("f1", rng.integers(2**14, 2**15, columns).astype(np.int32))
        shift = int(np.log2(count * 127 * 255 * 2.0**30)) - 26
        op = RowLinear(shift, "int32", -(2**19) + 1, 2**19 - 1)
        product = builder.add("product", op, [self.scaled, self.peak, weight, bias, factors])
        beside = builder.constant("w2", rng.integers(-127, 128, (columns, 8)).astype(np.int8))
        zero = builder.constant("b2", np.zeros(columns, np.int32))
        half = builder.constant("m2", np.full(columns, 2**30, np.int32))
        lines = builder.nodes["lines"]
        residual = builder.add(
            "residual", Linear(31, 0, "int32", *LIMITS["int32"]), [lines, beside, zero, half]
        )
        op = Add.of(QParams.of(0.01), QParams.of(0.03), QParams.of(0.02), "int32")
        return builder.add("sum", op, [product, residual])

    def finish(self, **more):
        return self.builder.finish({"scaled": "scaled", "peak": "peak", **more}, {})


def compare(graph, target):
    """Steps of the graph's kernels, after their integers were found equal to the interpreter's."""
    steps = plan(graph, target)
    machine = relax.VirtualMachine(build(lower_steps(graph, steps), target), tvm.cpu())
    rng = np.random.default_rng(2)
    shape = graph.input.type.shape
    for image in (rng.integers(0, 256, shape), np.zeros(shape), rng.choice([0, 255], shape)):
        pixels = image.astype(np.uint8)
        found = [tensor.numpy() for tensor in machine["main"](tvm.runtime.tensor(pixels))]
        expected = run(graph, torch.from_numpy(pixels))
        for value, name in zip(found, graph.outputs, strict=True):
            assert np.array_equal(value, expected[name].numpy()), name
    return [step.kernel for step in steps]


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("count", [1, 33, 70])
@pytest.mark.parametrize("rows", [1, 11])
@pytest.mark.parametrize(
    ("normalised", "kernel"), [(False, "row_scale"), (True, "layernorm_scale")]
)
def test_one_kernel_scales_rows(normalised, kernel, rows, count, side, target):
    kernels = compare(Rows(rows, count, side, normalised).finish(), target)
    assert kernels[-1] == kernel
    assert not {"row_peak", "row_quantise", "layernorm"} & set(kernels)


def test_a_value_that_others_read_stays_in_a_kernel_of_its_own(target):
    graph = Rows(5, 40, (0, 0), True).finish(normal="normal")
    assert compare(graph, target)[-2:] == ["layernorm", "row_scale"]


def test_a_peak_that_is_read_before_the_rows_are_scaled(target):
    rows = Rows(5, 40, (0, 0), False)
    early = rows.builder.add("early", RowQuantise(0, 0), [rows.last, rows.peak])
    graph = rows.finish(early=early.name)
    names = [[node.name for node in group.nodes] for group in groups(graph)]
    assert ["peak"] in names
    kernels = compare(graph, target)
    assert sorted(kernels[-3:]) == ["row_peak", "row_quantise", "row_quantise"]


def test_tasks_are_cut_so_that_threads_share_them():
    assert parts_of(7, 3) == [3, 3, 1]
    even = slowness([1.0] * 12)
    assert even == 12 * len(THREADS)
    assert slowness([21.0] * 33 + [3.0] * 33) > 1.4 * slowness([12.0] * 66)


def test_a_gemm_of_more_weights_than_the_cache_holds_is_halved(target):
    gemm = importlib.import_module("iqvit.tvm_backend.kernels.gemm")
    if target.isa.lanes != 16:
        pytest.skip("the sizes are for 64 columns a panel")
    form = gemm.Gemm(197, 24 * 64, 384, "uint8", None, "int32")
    kernel = gemm.Kernel(form, target.isa, *[None] * 5, (), None, None)
    assert gemm.stretch_of(kernel, 33) == 12


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize(("rows", "count"), [(1, 64), (4, 33), (15, 200), (3, 768)])
def test_rows_are_scaled_where_they_are_multiplied(rows, count, side, target):
    made = Rows(rows, count, side, False)
    total = made.multiply(128)
    graph = made.builder.finish({"sum": total.name}, {})
    kernels = compare(graph, target)
    assert kernels[-1] == "row_gemm_add"
    assert ("row_scale" in kernels) == (target.isa.woven == 0)


@pytest.mark.parametrize("other", ["peak", "scaled"])
def test_scaled_rows_that_others_read_are_stored(other, target):
    made = Rows(4, 64, (0, 0), False)
    total = made.multiply(64)
    graph = made.builder.finish({"sum": total.name, "other": other}, {})
    assert "row_scale" in compare(graph, target)


def test_rows_that_would_be_scaled_twice_are_scaled_before(target, monkeypatch):
    monkeypatch.setattr("iqvit.tvm_backend.kernels.gemm_form.PANEL_BYTES", 64 * 96)
    made = Rows(4, 96, (0, 0), False)
    total = made.multiply(128)
    graph = made.builder.finish({"sum": total.name}, {})
    assert "row_scale" in compare(graph, target)
