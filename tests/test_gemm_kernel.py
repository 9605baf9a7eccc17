"""The int8 GEMM kernels against integers computed by numpy: equal, on every instruction set."""

import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from iqvit.errors import GraphError
from iqvit.tvm_backend.check import assert_no_float
from iqvit.tvm_backend.kernels.gemm import gemm_kernel
from iqvit.tvm_backend.kernels.gemm_form import Extra, Gemm
from iqvit.tvm_backend.kernels.isa import ARM_I8MM, AVX2, AVX512_VBMI, AVX512_VNNI, AVX_VNNI, ISAS
from iqvit.tvm_backend.kernels.packing import column_order, fold_bias, pack_weights
from iqvit.tvm_backend.kernels.portable import portable_gemm_kernel
from iqvit.tvm_backend.kernels.requant import Requant, fits_high_half
from iqvit.tvm_backend.kernels.vector import clamp, lanes_of, limits, pieces, span, typed
from iqvit.tvm_backend.targets import TARGETS, missing_features

# AVX-VNNI's 256-bit dot product runs in its EVEX form on CPUs that have AVX-512 VNNI.
BUILT_FOR = {
    "avx512-vbmi": "x86-vbmi",
    "avx512-vnni": "x86-vnni",
    "avx-vnni": "x86-vnni",
    "avx2": "x86-avx2",
}
X86 = [ISAS[name] for name in BUILT_FOR]
SHAPES = [(1, 5, 3), (6, 64, 64), (13, 37, 100), (20, 67, 130), (5, 130, 16), (4, 24, 128)]
REQUANTS = [
    Requant(40, 3, "int8", -128, 127),
    Requant(41, -5, "int8", -100, 90),
    Requant(39, 128, "uint8", 0, 255),
    Requant(33, 0, "int16", -32768, 32767),
    Requant(31, 7, "int32", -(2**31), 2**31 - 1),
    Requant(1, 0, "int16", -300, 300),
    Requant(62, 1, "uint8", 1, 200),
    None,
]


def operands(gemm, seed=0, extreme=False):
    """x, weight, bias and mult of a GEMM; `extreme` puts every one of them at a bound."""
    rng = np.random.default_rng(seed)
    lo, hi = limits(gemm.x_dtype)
    if extreme:
        x = rng.choice([lo, hi], (gemm.m, gemm.k))
        weight = rng.choice([-127, 127], (gemm.n, gemm.k))
        # What is left of int32 beside the largest sum of products.
        room = 2**31 - 1 - gemm.k * 127 * max(-lo, hi)
        bias, mult = rng.choice([-room, room], gemm.n), rng.choice([0, 2**31 - 1], gemm.n)
    else:
        x = rng.integers(lo, hi + 1, (gemm.m, gemm.k))
        weight = rng.integers(-127, 128, (gemm.n, gemm.k))
        bias = rng.integers(-(10**5), 10**5, gemm.n)
        mult = rng.integers(2**30, 2**31, gemm.n)
    return (
        x.astype(gemm.x_dtype),
        weight.astype(np.int8),
        bias.astype(np.int32),
        None if gemm.requant is None else mult.astype(np.int32),
    )


def reference(gemm, x, weight, bias, mult):
    acc = x.astype(np.int64) @ weight.T.astype(np.int64) + bias
    assert abs(acc).max() < 2**31
    if gemm.requant is None:
        return acc.astype(np.int32)
    rq = gemm.requant
    scaled = (acc * mult.astype(np.int64) + (1 << (rq.shift - 1))) >> rq.shift
    return np.clip(scaled + rq.zero_point, rq.lo, rq.hi).astype(rq.dtype)


def build(function, target, name="gemm"):
    module = tvm.IRModule({name: function})
    assert_no_float(module)
    return tvm.compile(module, target=TARGETS[target].tvm_target())[name]


def needs(target):
    missing = missing_features(TARGETS[target].features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")


def run(function, gemm, target, arrays):
    guard = 64
    out = np.full(gemm.m * gemm.n + 2 * guard, 77, gemm.out_dtype)
    tensors = [tvm.runtime.tensor(a) for a in arrays if a is not None]
    result = tvm.runtime.tensor(out[guard : guard + gemm.m * gemm.n].reshape(gemm.m, gemm.n))
    build(function, target)(*tensors, result)
    return result.numpy()


def run_packed(gemm, isa, data, extras=(), epilogue=None, arrays=()):
    x, weight, bias, mult = data
    packed = pack_weights(
        weight, bias, mult, signed=gemm.x_dtype == "int8", dtype=gemm.value_dtype, isa=isa
    )
    function = gemm_kernel(gemm, isa, "gemm", extras, epilogue)
    everything = (x, packed.weight, packed.bias, packed.mult, *arrays)
    return run(function, gemm, BUILT_FOR[isa.name], everything)


def make(shape, x_dtype, requant):
    m, k, n = shape
    return Gemm(m, n, k, x_dtype, requant, "int32" if requant is None else requant.dtype)


@pytest.mark.parametrize("isa", X86, ids=lambda isa: isa.name)
@pytest.mark.parametrize("x_dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_gives_the_integers_of_the_rule(isa, x_dtype, shape):
    needs(BUILT_FOR[isa.name])
    gemm = make(shape, x_dtype, REQUANTS[0])
    data = operands(gemm)
    assert np.array_equal(run_packed(gemm, isa, data), reference(gemm, *data))


@pytest.mark.parametrize("isa", X86, ids=lambda isa: isa.name)
@pytest.mark.parametrize("requant", REQUANTS, ids=str)
def test_every_requantisation_gives_the_integers_of_the_rule(isa, requant):
    needs(BUILT_FOR[isa.name])
    gemm = make((7, 24, 70), "int8", requant)
    data = operands(gemm, extreme=True)
    assert np.array_equal(run_packed(gemm, isa, data), reference(gemm, *data))


@pytest.mark.parametrize("x_dtype", ["uint8", "int8"])
@pytest.mark.parametrize("requant", REQUANTS, ids=str)
def test_portable_loops_give_the_integers_of_the_rule(x_dtype, requant):
    gemm = make((5, 37, 19), x_dtype, requant)
    data = operands(gemm, extreme=True)
    result = run(portable_gemm_kernel(gemm, "gemm"), gemm, "portable", data)
    assert np.array_equal(result, reference(gemm, *data))


@pytest.mark.parametrize("isa", [AVX512_VBMI, AVX512_VNNI, AVX2], ids=lambda isa: isa.name)
def test_epilogue_adds_a_residual_and_changes_the_type(isa):
    needs(BUILT_FOR[isa.name])
    requant = Requant(38, 0, "int16", -32768, 32767)
    gemm = Gemm(8, 75, 16, "uint8", requant, "int32")
    data = operands(gemm)
    residual = np.random.default_rng(1).integers(-(2**20), 2**20, (8, 75)).astype(np.int32)

    def add(values, m, n, extras):
        lanes = lanes_of(values[0])
        wide = [T.Cast(typed("int32", lanes), value) for value in values]
        places = (span(n + i * lanes, lanes) for i in range(len(values)))
        sums = (value + extras[0][m, at] for value, at in zip(wide, places, strict=True))
        return [clamp(value, -(2**19), 2**19) for value in sums]

    extras = (Extra("residual", (8, 75), "int32"),)
    result = run_packed(gemm, isa, data, extras, add, (residual,))
    expected = np.clip(reference(gemm, *data).astype(np.int64) + residual, -(2**19), 2**19)
    assert np.array_equal(result, expected)
    plain = portable_gemm_kernel(gemm, "gemm", extras, add)
    assert np.array_equal(run(plain, gemm, "portable", (*data, residual)), expected)


def test_nothing_is_written_beyond_the_output():
    needs("x86-vnni")
    gemm = make((7, 9, 21), "uint8", REQUANTS[0])
    x, weight, bias, mult = operands(gemm)
    packed = pack_weights(weight, bias, mult, signed=False, dtype="int8", isa=AVX512_VNNI)
    room = tvm.runtime.tensor(np.full((8, 7, 21), 77, np.int8))
    function = gemm_kernel(gemm, AVX512_VNNI, "gemm")
    kernel = build(function, "x86-vnni")
    tensors = [tvm.runtime.tensor(a) for a in (x, packed.weight, packed.bias, packed.mult)]
    kernel(*tensors, room._create_view((7, 21)))
    assert np.array_equal(room.numpy()[0], reference(gemm, x, weight, bias, mult))
    assert (room.numpy()[1:] == 77).all()


@pytest.mark.parametrize("isa", [AVX512_VBMI, AVX512_VNNI], ids=lambda isa: isa.name)
@pytest.mark.parametrize("k", [64, 65, 512])
def test_more_stretches_than_one(isa, k, monkeypatch):
    needs(BUILT_FOR[isa.name])
    monkeypatch.setattr("iqvit.tvm_backend.kernels.gemm_form.PANEL_BYTES", 2 * 64 * 64)
    gemm = make((9, k, 64 * 6), "int8", REQUANTS[0])
    data = operands(gemm)
    assert np.array_equal(run_packed(gemm, isa, data), reference(gemm, *data))


def test_avx_vnni_compiles_to_its_own_encoding():
    gemm = make((6, 16, 16), "uint8", REQUANTS[0])
    module = tvm.IRModule({"gemm": gemm_kernel(gemm, AVX_VNNI, "gemm")})
    library = tvm.compile(module, target=TARGETS["x86-avxvnni"].tvm_target())
    assembly = library.mod.inspect_source("asm")
    assert "{vex}\tvpdpbusd" in assembly
    assert "zmm" not in assembly


def test_i8mm_multiplies_matrices():
    # What it computes is held to the operators' bits on an emulated CPU (test_runner.py).
    gemm = make((6, 16, 16), "uint8", REQUANTS[0])
    module = tvm.IRModule({"gemm": gemm_kernel(gemm, ARM_I8MM, "gemm")})
    library = tvm.compile(module, target=TARGETS["arm64-i8mm"].tvm_target())
    assembly = library.mod.inspect_source("asm")
    assert assembly.count("usmmla") == 24 * (16 // ARM_I8MM.k_group)
    assert "dot" not in assembly


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_column_order_is_a_permutation(isa, dtype):
    order = column_order(dtype, isa)
    assert sorted(order.ravel()) == list(range(isa.panel))


def test_high_half_is_refused_where_it_could_overflow():
    assert fits_high_half(Requant(33, 0, "int8", -128, 127))
    assert not fits_high_half(Requant(32, 0, "int8", -128, 127))
    assert not fits_high_half(Requant(55, 255, "uint8", 0, 255))


def test_folded_bias_wraps_like_the_accumulator():
    weight = np.full((1, 1000), 127, np.int8)
    bias = np.array([-(2**31) + 5], np.int32)
    assert fold_bias(weight, bias)[0] == (-(2**31) + 5 - 128 * 127000 + 2**32)


@pytest.mark.parametrize(("length", "widest"), [(0, 8), (1, 8), (63, 64), (64, 64), (100, 16)])
def test_pieces_cover_a_length_exactly(length, widest):
    covered = [i for offset, width in pieces(length, widest) for i in range(offset, offset + width)]
    assert covered == list(range(length))


def test_wrong_operands_are_refused():
    weight, bias = np.zeros((4, 8), np.int8), np.zeros(4, np.int32)
    options = {"signed": False, "dtype": "int8", "isa": AVX2}
    with pytest.raises(GraphError, match=r"weights must be int8 \[N, K\]"):
        pack_weights(weight.astype(np.int16), bias, bias, **options)
    with pytest.raises(GraphError, match=r"bias must be int32 \[4\]"):
        pack_weights(weight, bias[:3], bias, **options)
    with pytest.raises(GraphError, match="must not be negative"):
        pack_weights(weight, bias, bias - 1, **options)
    with pytest.raises(GraphError, match="shift of 0"):
        Requant(0, 0, "int8", -128, 127)
    with pytest.raises(GraphError, match=r"-200\.\.127 does not fit int8"):
        Requant(40, 0, "int8", -200, 127)
