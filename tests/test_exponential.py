"""The exponential of attention in 16-bit lanes gives the integers of its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from loose import needs

from iqvit.ops.exp2 import Exp2
from iqvit.tvm_backend.kernels.exponential import (
    BYTES,
    Exp2Scalars,
    emit_exp2_bytes,
    takes_words,
)
from iqvit.tvm_backend.kernels.isa import ISAS
from iqvit.tvm_backend.kernels.script import IRBuilder, T
from iqvit.tvm_backend.kernels.vector import function_attributes, span
from iqvit.tvm_backend.targets import TARGETS

LANES = 16
COUNT = 1 << 16


def kernel(exp, isa):
    """`bytes(d int32 [COUNT / 64, 4, 16], out int32 [COUNT / 64, 16])`."""
    blocks = COUNT // (BYTES * LANES)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("bytes")
        T.func_attr(function_attributes("bytes"))
        d = T.arg("d", T.buffer((blocks, BYTES, LANES), "int32"))
        out = T.arg("out", T.buffer((blocks, LANES), "int32"))
        numbers = Exp2Scalars(*map(T.int32, (exp.pre, exp.cap, exp.multiplier, exp.shift)))
        with T.serial(blocks) as i:
            lane = span(0, LANES)
            value = emit_exp2_bytes(numbers, [d[i, j, lane] for j in range(BYTES)], isa)
            T.buffer_store(out, value, [i, lane])
    return builder.get()


def test_only_registers_of_16_lanes_are_shifted_word_by_word():
    exp = Exp2.of(0.01)
    assert [name for name, isa in ISAS.items() if takes_words(exp, isa)] == [
        "avx512-vbmi",
        "avx512-vnni",
    ]
    for shift, fits in ((1, False), (2, True), (16, True), (17, False)):
        assert takes_words(replace(exp, shift=shift), ISAS["avx512-vnni"]) == fits


@pytest.mark.parametrize(
    "exp",
    [
        *map(Exp2.of, (2e-5, 4e-4, 0.011, 0.3)),
        Exp2(0, 65535, 32767, 16),
        Exp2(2, 32767, 65535, 2),
        Exp2(1, 300, 65535, 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["x86-vbmi", "x86-vnni"])
def test_every_difference_up_to_16_bits(name, exp):
    needs(name)
    target = TARGETS[name]
    assert takes_words(exp, target.isa)
    module = tvm.IRModule({"bytes": kernel(exp, target.isa)})
    run = tvm.compile(module, target=target.tvm_target())["bytes"]
    d = np.arange(COUNT, dtype=np.int32)
    d[-LANES:] = 2**31 - 1 - np.arange(LANES)  # and the largest that there are
    blocks = d.reshape(-1, BYTES, LANES)
    out = tvm.runtime.tensor(np.zeros((len(blocks), LANES), np.int32))
    run(tvm.runtime.tensor(blocks), out)
    got = out.numpy().view(np.uint8).reshape(-1, LANES, BYTES).transpose(0, 2, 1)
    wanted = exp.run(torch.from_numpy(blocks.astype(np.int64)), 255).numpy()
    np.testing.assert_array_equal(got, wanted)
