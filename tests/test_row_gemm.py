"""`row_linear` with what follows it, on whole panels and beyond: the integers of the operators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loose import compiled, draw, needs, one_node

from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops import Rectified, RowLinear
from iqvit.ops.base import Sample
from iqvit.ops.linear import Linear
from iqvit.tvm_backend.kernels.rectified import planes_kind
from iqvit.tvm_backend.kernels.tables import ENTRIES, planes_of

TARGETS = pytest.mark.parametrize("target", ["x86-vbmi", "x86-vnni", "x86-avx2"])
PEAK = 2**15 - 1


def row_linear(m, n, k, dtype, x_dtype="int8", seed=0):
    """A sample whose results fill `dtype`, and pass it by a little at its extremes."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    bias = rng.integers(-(2**14), 2**14, n).astype(np.int32)
    factors = rng.integers(2**14, 2**15, n).astype(np.int32)
    most = k * 127 * 127 * PEAK * 2**15
    shift = int(np.ceil(np.log2(most / (LIMITS[dtype][1] * 2.0**8)))) - 3
    x = IntType(x_dtype, (m, k), 0 if x_dtype == "uint8" else -127, 127)
    peaks = IntType("int32", (m, 1), 1, PEAK)
    op = RowLinear(shift, dtype, *LIMITS[dtype])
    return Sample(op, (x, peaks, *map(constant_type, (weight, bias, factors))))


def compare(sample, target, *followers):
    needs(target)
    graph, group, values = one_node(sample, *followers)
    run = compiled(graph, group, values, target)
    rng = np.random.default_rng(1)
    for mode in ("random", "extreme", "small"):
        arrays = [draw(kind, mode, rng) for kind in sample.inputs]
        expected = sample.op.run(*map(torch.from_numpy, arrays))
        for op, *constants in followers:
            expected = op.run(expected, *map(torch.from_numpy, constants))
        assert np.array_equal(run(arrays), expected.numpy()), mode


@TARGETS
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
@pytest.mark.parametrize(
    ("m", "n", "k", "x_dtype"),
    [
        (1, 64, 64, "uint8"),
        (4, 128, 16, "int8"),
        (5, 64, 72, "int8"),
        (11, 192, 96, "uint8"),
        (83, 128, 37, "int8"),
        (13, 75, 64, "uint8"),
    ],
)
def test_rows_of_whole_and_of_broken_panels(m, n, k, x_dtype, dtype, target):
    compare(row_linear(m, n, k, dtype, x_dtype), target)


@TARGETS
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("scale", [3e-4, 0.02, 5e-5])
@pytest.mark.parametrize(("m", "n"), [(7, 128), (23, 64), (3, 80)])
def test_gelu_of_rows(m, n, scale, dtype, target):
    out = QParams.of(32767 * scale / LIMITS[dtype][1], 3)
    follower = Rectified.of("gelu", QParams.of(scale), out, dtype)
    compare(row_linear(m, n, 48, "int16"), target, follower)


@TARGETS
@pytest.mark.parametrize("columns", [1, 64])
@pytest.mark.parametrize("end", [0, -3])
def test_tables_that_fill_the_registers_and_scales_by_column(end, columns, target):
    scales = np.linspace(0.04, 0.06, columns)
    op, table, *rest = Rectified.of("silu", QParams.of(0.0565), QParams.of(scales, 7, -1), "uint8")
    table = np.resize(table, ENTRIES + 1)
    table[-2:] = (5, end)
    compare(row_linear(9, 64, 32, "int16"), target, (op, table, *rest))


@TARGETS
def test_a_table_that_covers_all_16_bits(target):
    op, table, *rest = Rectified.of("gelu", QParams.of(1e-4), QParams.of(0.01), "uint8")
    assert table[1:-1].all()
    assert planes_kind(op, table[:-1]) == "full_planes"
    sample = row_linear(64, 64, 32, "int16")
    graph, group, values = one_node(sample, (op, table, *rest))
    needs(target)
    run = compiled(graph, group, values, target)
    x = np.full((64, 32), 127, np.int8) * np.where(np.arange(64) % 2, 1, -1)[:, None]
    peak = np.full((64, 1), PEAK, np.int32) // np.arange(1, 65, dtype=np.int32)[:, None]
    weight, bias, factors = (torch.from_numpy(t.value.copy()) for t in sample.inputs[2:])
    x = x.astype(np.int8)
    wide = sample.op.run(*map(torch.from_numpy, (x, peak)), weight, bias, factors)
    assert (wide == -(2**15)).any()
    expected = op.run(wide, *map(torch.from_numpy, (table, *rest)))
    assert np.array_equal(run([x, peak, *[None] * 3]), expected.numpy())


def test_planes_are_the_bytes_of_a_table():
    planes = planes_of(np.arange(1, ENTRIES, dtype=np.int32))
    assert planes.shape == (4 * ENTRIES,)
    assert planes[255] == 0
    assert planes[254] == -1
    assert not planes[ENTRIES:].any()


def test_a_full_table_that_ends_early_has_no_planes():
    op = Rectified(6, 4, 20, "uint8", 0, 255)
    assert planes_kind(op, np.arange(1, ENTRIES + 1)) is None
    assert planes_kind(op, np.arange(ENTRIES, 0, -1) - 1) == "planes"


@TARGETS
@pytest.mark.parametrize(("m", "n"), [(7, 128), (3, 80)])
def test_silu_of_a_requantised_product(m, n, target):
    rng = np.random.default_rng(3)
    weight = rng.integers(-127, 128, (n, 48)).astype(np.int8)
    bias = rng.integers(-9999, 9999, n).astype(np.int32)
    mult = np.full(n, 2**30, np.int32)
    x = IntType("int8", (m, 48), -128, 127)
    linear = Linear(34, 0, "int16", *LIMITS["int16"])
    sample = Sample(linear, (x, *map(constant_type, (weight, bias, mult))))
    follower = Rectified.of("silu", QParams.of(5e-4), QParams.of(0.06, 3), "uint8")
    compare(sample, target, follower)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_rows_of_any_shape(data):
    target = data.draw(st.sampled_from(["x86-vbmi", "x86-vnni", "x86-avx2"]))
    m, n, k = (data.draw(st.integers(1, most)) for most in (40, 200, 100))
    dtype = data.draw(st.sampled_from(["int8", "uint8", "int16", "int32"]))
    compare(row_linear(m, n, k, dtype, data.draw(st.sampled_from(["int8", "uint8"]))), target)
