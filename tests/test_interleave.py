"""Statements of independent results take turns; those of dependent ones stay as they are."""

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from iqvit.tvm_backend.kernels.integers import keep
from iqvit.tvm_backend.kernels.interleave import MARK, interleave, woven
from iqvit.tvm_backend.kernels.vector import function_attributes
from iqvit.tvm_backend.targets import TARGETS


def function(chain, results, mark=True):
    """`name(x, out)`: for every row, `chain` of each of its `results` elements."""
    marks = {MARK: True} if mark else None
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("rows")
        T.func_attr(function_attributes("rows"))
        x = T.arg("x", T.buffer((5, results), "int32"))
        out = T.arg("out", T.buffer((5, results), "int32"))
        with T.serial(5, annotations=marks) as row:
            for i in range(results):
                T.buffer_store(out, chain(x, out, row, i), [row, i])
    return builder.get()


def alone(x, _out, row, i):
    return keep(keep(x[row, i] * 3) + 7) ^ i


def after_the_one_before(x, out, row, i):
    return keep(x[row, i] * 3) + (out[row, i - 1] if i else 0)


def run(prim, x):
    library = tvm.compile(tvm.IRModule({"rows": prim}), target=TARGETS["portable"].tvm_target())
    out = tvm.runtime.tensor(np.zeros_like(x))
    library["rows"](tvm.runtime.tensor(x), out)
    return out.numpy()


def targets_of(prim):
    """Where the statements of the loop store: the name of a variable, or `out`."""
    stores = [s for s in prim.body.body.seq if isinstance(s, tvm.tirx.BufferStore)]
    return [s.buffer.same_as(prim.params[1]) or s.buffer.name == "out" for s in stores]


@pytest.mark.parametrize(
    ("chain", "turns"),
    [(alone, [False] * 6 + [True] * 3), (after_the_one_before, [False, True] * 3)],
)
def test_results_are_the_same_whether_or_not_they_take_turns(chain, turns):
    plain, changed = function(chain, 3, mark=False), interleave(function(chain, 3))
    assert targets_of(changed) == turns
    assert MARK not in changed.body.annotations
    x = np.random.default_rng(0).integers(-99, 99, (5, 3)).astype(np.int32)
    assert np.array_equal(run(plain, x), run(changed, x))


def test_a_single_result_stays_as_it_is():
    changed = interleave(function(alone, 1))
    assert targets_of(changed) == [False, False, True]


def two_threads(first, second):
    """`rows(x, out)`: the first columns of `out` by one thread, the others by another."""
    columns = first + second
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("rows")
        T.func_attr(function_attributes("rows"))
        x = T.arg("x", T.buffer((5, columns), "int32"))
        out = T.arg("out", T.buffer((5, columns), "int32"))
        with T.serial(5) as row, woven() as thread:
            for places in (range(first), range(first, columns)):
                with thread():
                    for i in places:
                        T.buffer_store(out, x[row, i] * 3 + i, [row, i])
    return builder.get()


@pytest.mark.parametrize(
    ("first", "second", "order"), [(2, 4, [0, 2, 3, 1, 4, 5]), (3, 1, [0, 3, 1, 2])]
)
def test_two_threads_are_woven_in_proportion(first, second, order):
    changed = interleave(two_threads(first, second))
    assert [int(s.indices[1]) for s in changed.body.body.seq] == order
    x = np.random.default_rng(0).integers(-99, 99, (5, first + second)).astype(np.int32)
    assert np.array_equal(run(changed, x), x * 3 + np.arange(first + second))
