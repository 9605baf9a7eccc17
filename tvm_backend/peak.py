"""The int8 peak of this CPU: dot products from registers to registers, nothing else."""

import time

import numpy as np
import tvm

from iqvit.errors import TargetError
from iqvit.tvm_backend.kernels.instructions import dot, matrix_product
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.script import Expr, IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes, span, splat, typed
from iqvit.tvm_backend.targets import Target
from iqvit.tvm_backend.threads import set_threads

CHAINS = 12
"""Independent accumulators: more than two ports times five cycles of latency."""
STEPS = 20_000
REPEATS = 15


def measure_peak(target: Target, threads: int = 1) -> float:
    """Multiply-accumulates a second that `threads` cores reach by `target`'s dot or matrix product.

    The best of a few runs of about a millisecond, so it stands for the clock as it is under this
    load, which a data sheet does not know. Raises `TargetError` for a target without one.
    """
    if target.isa is None:
        raise TargetError(f"target {target.name} has no dot instruction whose peak could be taken")
    isa = target.isa
    module = tvm.IRModule({"peak": peak_kernel(isa, threads)})
    run = tvm.compile(module, target=target.tvm_target())["peak"]
    operands = [
        tvm.runtime.tensor(np.zeros((threads, CHAINS, isa.lanes), np.int32)),
        tvm.runtime.tensor(np.zeros(isa.slots, isa.weight)),
    ]
    set_threads(threads)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(*operands)
        best = min(best, time.perf_counter() - start)
    return threads * STEPS * CHAINS * isa.slots * isa.tile / best


def peak_kernel(isa: Isa, threads: int) -> PrimFunc:
    """`peak(out int32 [threads, CHAINS, lanes], x [slots])`: the loop that is timed."""
    lane, slot = span(0, isa.lanes), span(0, isa.slots)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("peak")
        T.func_attr(function_attributes("peak"))
        out = T.arg("out", T.buffer((threads, CHAINS, isa.lanes), "int32"))
        x = T.arg("x", T.buffer((isa.slots,), isa.weight))
        with T.parallel(threads) as thread:
            acc = T.alloc_buffer((CHAINS, isa.lanes), "int32", scope="local")
            for i in range(CHAINS):
                T.buffer_store(acc, splat(0, "int32", isa.lanes), [i, lane])
            with T.serial(STEPS):
                for i in range(CHAINS):
                    T.buffer_store(acc, _step(isa, acc[i, lane], x[slot]), [i, lane])
            for i in range(CHAINS):
                T.buffer_store(out, acc[i, lane], [thread, i, lane])
    return builder.get()


def _step(isa: Isa, acc: Expr, x: Expr) -> Expr:
    if isa.matrix:
        return matrix_product(isa, acc, x, x)
    # Without accumulation the accumulator takes part in an operand, or the product would be taken
    # out of the loop.
    mixed = x if isa.dot_accumulates else T.reinterpret(typed(isa.operand, isa.slots), acc)
    return dot(isa, acc, mixed, x)
