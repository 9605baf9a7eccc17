"""Every fast kernel against the definition of its operator, `Op.run`: equal, on every ISA."""

import numpy as np
import pytest
import torch
import tvm
from loose import compiled, draw, needs, one_node
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from iqvit.arith import isqrt
from iqvit.inttype import LIMITS, IntType, QParams, constant_type
from iqvit.ops import (
    Attention,
    Concat,
    Conv2d,
    LayerNorm,
    Permute,
    Rectified,
    RowLinear,
    Slice,
)
from iqvit.ops.base import REGISTRY, Sample
from iqvit.tvm_backend.kernels.integers import quotient, square_root, total
from iqvit.tvm_backend.kernels.isa import AVX512_VNNI
from iqvit.tvm_backend.kernels.rectified_form import raised_by, rectified_scalars
from iqvit.tvm_backend.kernels.rows import form_of
from iqvit.tvm_backend.kernels.vector import function_attributes, span, splat
from iqvit.tvm_backend.lower import constant
from iqvit.tvm_backend.plan import FAST
from iqvit.tvm_backend.targets import TARGETS

SIMD = ("x86-vbmi", "x86-vnni", "x86-avx2")


def check(sample, target, *followers):
    needs(target)
    graph, group, values = one_node(sample, *followers)
    run = compiled(graph, group, values, target)
    if run is None:
        return False
    rng = np.random.default_rng(0)
    for mode in ("random", "extreme", "small"):
        arrays = [draw(kind, mode, rng) for kind in sample.inputs]
        expected = sample.op.run(*(torch.from_numpy(a.copy()) for a in arrays))
        for op in followers:
            expected = op.run(expected)
        assert np.array_equal(run(arrays), expected.numpy()), mode
    return True


OPERATORS = sorted(op.NAME for op in FAST if op.NAME)
# Kernels that take an operator only with neighbours that its samples lack.
NEED_NEIGHBOURS = ("conv2d", "matmul", "upsample_bilinear")


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_give_the_integers_of_the_samples(name, target):
    taken = [check(sample, target) for sample in REGISTRY[name].samples()]
    assert any(taken) or name in NEED_NEIGHBOURS


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("heads", "queries", "keys", "depth", "out"),
    [
        (1, 1, 1, 4, "int8"),
        (2, 17, 33, 20, "uint8"),
        (3, 16, 5, 64, "int16"),
        (1, 20, 66, 8, "int8"),
        (1, 130, 24, 12, "uint8"),
        (7, 40, 70, 36, "int16"),
        (6, 33, 7, 4, "int8"),
    ],
)
def test_attention_of_odd_shapes(heads, queries, keys, depth, out, target):
    qkv = (QParams.of(0.03), QParams.of(0.05), QParams.of(0.02))
    op = Attention.of(*qkv, QParams.of(0.021 if out != "int16" else 1e-4, 3), 0.3, 8, out)
    types = tuple(IntType("int8", (1, heads, n, depth), -128, 127) for n in (queries, keys, keys))
    assert check(Sample(op, types), target)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize("sign", [-1, 1])
def test_attention_whose_products_are_all_as_small_or_as_large_as_can_be(sign, target):
    needs(target)
    op = Attention.of(*[QParams.of(0.05)] * 4, 1e-5, 8, "int8")
    types = (IntType("int8", (1, 1, 40, 64), -128, 127),) * 3
    graph, group, values = one_node(Sample(op, types))
    run = compiled(graph, group, values, target)
    q, k = np.full(types[0].shape, -128, np.int8), np.full(types[0].shape, sign * 127, np.int8)
    v = np.random.default_rng(0).integers(-128, 128, types[2].shape).astype(np.int8)
    expected = op.run(*map(torch.from_numpy, (q, k, v)))
    assert np.array_equal(run([q, k, v]), expected.numpy())


@pytest.mark.parametrize("target", SIMD)
def test_attention_with_exponentials_that_never_vanish(target):
    op = Attention(0, 3, 1000, 2, 8, 2**38, 0, 38, "int8", -128, 127)
    types = (IntType("int8", (1, 1, 40, 8), -128, 127),) * 3
    assert check(Sample(op, types), target)


@pytest.mark.parametrize("target", SIMD)
def test_attention_writes_where_permute_and_reshape_put_it(target):
    op = Attention.of(*[QParams.of(0.05)] * 3, QParams.of(0.05), 0.2, 8, "int8")
    types = (IntType("int8", (1, 3, 9, 8), -128, 127),) * 3
    reshape = REGISTRY["reshape"]((1, 9, 24))
    assert check(Sample(op, types), target, Permute((0, 2, 1, 3)), reshape)


def test_attention_declines_what_it_does_not_cover():
    types = (IntType("int8", (1, 1, 4, 6), -128, 127),) * 3
    unit = QParams.of(0.05)
    odd = Attention.of(unit, unit, unit, unit, 0.2, 8, "int8")
    graph, group, _ = one_node(Sample(odd, types))
    assert FAST[Attention](graph, group, AVX512_VNNI) is None
    wide = Attention.of(unit, unit, unit, unit, 0.2, 16, "int8")
    graph, group, _ = one_node(Sample(wide, (IntType("int8", (1, 1, 4, 8), -128, 127),) * 3))
    assert FAST[Attention](graph, group, AVX512_VNNI) is None


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("dtype", "bits", "shape", "out"),
    [
        ("int16", 16, (1, 1, 33), "int8"),
        ("int32", 20, (1, 11, 70), "int16"),
        ("int32", 20, (3, 64), "uint8"),
        ("uint8", 8, (9, 7), "int8"),
    ],
)
def test_layernorm_of_odd_shapes(dtype, bits, shape, out, target):
    rng = np.random.default_rng(1)
    least = 0 if dtype == "uint8" else -(2 ** (bits - 1))
    x = IntType(dtype, shape, least, least + 2**bits - 1)
    gain, bias = rng.uniform(-2, 2, shape[-1]), rng.uniform(-1, 1, shape[-1])
    scale = 0.03 if out != "int16" else 2e-4
    op, g, b = LayerNorm.of(x, QParams.of(0.01), gain, bias, 1e-6, QParams.of(scale), out)
    assert check(Sample(op, (x, constant_type(g), constant_type(b))), target)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("shift", "peak", "multiplier", "dtype", "upper", "raised", "halved"),
    [
        (30, 2**15 - 1, 2**15 - 1, "int8", True, False, True),
        (24, 2**16 - 2, 2**15 - 1, "int16", True, False, True),
        (20, 2**16 - 1, 2**15 - 1, "int16", True, True, False),
        (33, 2**20, 2**10, "uint8", True, False, False),
        (9, 1000, 2**15 - 1, "int32", False, False, True),
        (1, 7, 3, "int32", False, False, True),
    ],
)
def test_rows_are_rescaled_in_every_form(
    shift, peak, multiplier, dtype, upper, raised, halved, target
):
    rng = np.random.default_rng(shift)
    weight = rng.integers(-127, 128, (70, 40)).astype(np.int8)
    weight[0] = 127
    bias = rng.integers(-(2**16), 2**16, 70).astype(np.int32)
    factors = rng.integers(0, multiplier + 1, 70).astype(np.int32)
    factors[:2] = multiplier
    x = IntType("int8", (7, 40), -127, 127)
    peaks = IntType("int32", (7, 1), 1, peak)
    inputs = (x, peaks, *map(constant_type, (weight, bias, factors)))
    op = RowLinear(shift, dtype, *LIMITS[dtype])
    form, _ = form_of(op, list(inputs))
    assert (form.upper, form.raised, form.halved) == (upper, raised, halved)
    assert check(Sample(op, inputs), target)


@pytest.mark.parametrize(("shift", "bias"), [(40, 2**30), (55, -128)])
def test_rows_that_leave_64_bits_are_declined(shift, bias):
    kinds = [
        IntType("int8", (7, 40), -127, 127),
        IntType("int32", (7, 1), 1, 100),
        *map(constant_type, (np.ones((3, 40), np.int8), np.full(3, bias, np.int32))),
        constant_type(np.ones(3, np.int32)),
    ]
    assert form_of(RowLinear(shift, "int8", -128, 127), kinds) == (None, [])


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("scale", "raised"), [(0.05, 0), (0.0007, 0), (2e-5, 2), (1e-7, 10), (1e-9, None)]
)
@pytest.mark.parametrize("end", [0, -3])
def test_rectified_of_any_scale_and_with_any_end(scale, raised, end, target):
    needs(target)
    op, table, multiplier, zero = Rectified.of(
        "silu", QParams.of(0.0003), QParams.of(scale, -7), "int16"
    )
    table[-1] = end  # what lies beyond the table is as its last entry
    x = np.arange(-(2**15), 2**15).astype(np.int16).reshape(1, -1, 32)
    constants = [table, multiplier, zero]
    kinds = (IntType("int16", x.shape, *LIMITS["int16"]), *map(constant_type, constants))
    ends = rectified_scalars(op, kinds, 0)[1]
    assert raised_by(op, kinds, ends) == raised
    graph, group, values = one_node(Sample(op, kinds))
    run = compiled(graph, group, values, target)
    expected = op.run(*(torch.from_numpy(a.copy()) for a in (x, *constants))).numpy()
    assert np.array_equal(run([x, *constants]), expected)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize("columns", [1, 5, 31, 48])
def test_rectified_of_any_width_and_every_value(columns, target):
    needs(target)
    op, *constants = Rectified.of("gelu", QParams.of(0.0007), QParams.of(0.03, 9), "uint8")
    x = np.arange(-(2**15), 2**15).astype(np.int16)
    x = np.append(x, np.zeros(-len(x) % columns, np.int16)).reshape(1, -1, columns)
    sample = Sample(
        op, (IntType("int16", x.shape, *LIMITS["int16"]), *map(constant_type, constants))
    )
    graph, group, values = one_node(sample)
    run = compiled(graph, group, values, target)
    arrays = [x, *constants]
    expected = op.run(*(torch.from_numpy(a.copy()) for a in arrays)).numpy()
    assert np.array_equal(run(arrays), expected)


@pytest.mark.parametrize("target", SIMD)
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Permute((2, 0, 1)), [(3, 4, 70)]),
        (Permute((0, 2, 1)), [(1, 5, 9)]),
        (Slice(1, 2, 7, 2), [(2, 8, 67)]),
        (Slice(2, 3, 4, 1), [(2, 3, 5)]),
        (Concat(0), [(2, 3), (1, 3)]),
        (Concat(2), [(2, 3, 65), (2, 3, 1), (2, 3, 128)]),
    ],
    ids=str,
)
def test_copies(op, shapes, target):
    types = tuple(IntType("int16", shape, *LIMITS["int16"]) for shape in shapes)
    assert check(Sample(op, types), target)


@pytest.mark.parametrize("target", SIMD)
def test_patch_embedding_reads_patches_and_writes_rows(target):
    rng = np.random.default_rng(3)
    weight = rng.integers(-127, 128, (10, 3, 4, 6)).astype(np.int8)
    bias = rng.integers(-999, 999, 10).astype(np.int32)
    m = rng.integers(2**29, 2**31 - 1, 10).astype(np.int32)
    op = Conv2d((4, 6), (0, 0), (1, 1), 1, (0,), 36, 2, "int16", *LIMITS["int16"])
    types = (IntType("uint8", (1, 3, 12, 12), 0, 255), *map(constant_type, (weight, bias, m)))
    followers = (REGISTRY["reshape"]((1, 10, 6)), Permute((0, 2, 1)))
    assert check(Sample(op, types), target, *followers)
    assert not check(Sample(op, types), target)


@pytest.mark.parametrize(("target", "lanes"), [("x86-vnni", 16), ("x86-avx2", 8), ("x86-avx2", 4)])
def test_roots_quotients_and_sums_are_exact(target, lanes):
    needs(target)
    rng = np.random.default_rng(2)
    roots = rng.integers(0, 2**31 - 1, 400)
    values = np.concatenate([roots**2, roots**2 - 1, roots**2 + 1, [0, 1, 2, 3, 2**62 - 1]])
    values = np.concatenate([values.clip(0), rng.integers(0, 2**62, 3000)])
    values = values[: len(values) // lanes * lanes].reshape(-1, lanes)
    divisors = rng.integers(2**20, 2**31, values.shape)
    divisors[0] = 2**31 - 1
    numerator = 2**51 - 1
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("f")
        T.func_attr(function_attributes("f"))
        x = T.arg("x", T.buffer(values.shape, "int64"))
        y = T.arg("y", T.buffer(values.shape, "int32"))
        out = [T.arg(n, T.buffer(values.shape, d)) for n, d in (("a", "int64"), ("b", "int32"))]
        sums = T.arg("sums", T.buffer((len(values),), "int64"))
        with T.serial(len(values)) as i:
            index = [i, span(0, lanes)]
            T.buffer_store(out[0], square_root(x[tuple(index)]), index)
            T.buffer_store(out[1], quotient(T.int64(numerator), y[tuple(index)]), index)
            T.buffer_store(sums, total(x[tuple(index)] >> splat(4, "int64", lanes)), [i])
    run = tvm.compile(tvm.IRModule({"f": builder.get()}), target=TARGETS[target].tvm_target())["f"]
    results = [tvm.runtime.tensor(np.zeros(values.shape, d)) for d in (np.int64, np.int32)]
    added = tvm.runtime.tensor(np.zeros(len(values), np.int64))
    given = [tvm.runtime.tensor(a) for a in (values, divisors.astype(np.int32))]
    run(*given, *results, added)
    assert np.array_equal(results[0].numpy(), isqrt(torch.from_numpy(values)).numpy())
    assert np.array_equal(results[1].numpy(), numerator // divisors)
    assert np.array_equal(added.numpy(), (values >> 4).sum(1))


def test_constants_keep_their_type():
    assert 'dtype="int64"' in str(constant(np.array([2**40])).ty)
