"""Programs drawn at random, compiled whole: the integers of the interpreter."""

import numpy as np
import pytest
import torch
import tvm
from growing import drawn_images, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loose import needs
from tvm import relax

from iqvit.interpret import evaluate
from iqvit.tvm_backend.lower import lower
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.targets import TARGETS

LARGE = [HealthCheck.large_base_example, HealthCheck.too_slow, HealthCheck.data_too_large]


def check(data):
    target = data.draw(st.sampled_from(["x86-vbmi", "x86-vnni", "x86-avx2", "portable"]))
    needs(target)
    graph = grow(data)
    machine = relax.VirtualMachine(build(lower(graph, target), TARGETS[target]), tvm.cpu())
    for pixels in torch.from_numpy(drawn_images(graph.input.type.shape)):
        expected = evaluate(graph, pixels[None])
        results = machine["main"](tvm.runtime.tensor(pixels[None].numpy()))
        for name, found in zip(expected, results, strict=True):
            assert np.array_equal(found.numpy(), expected[name].numpy()), name


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=LARGE)
@given(st.data())
def test_random_programs_give_the_integers_of_the_interpreter(data):
    check(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=False, suppress_health_check=LARGE)
@given(st.data())
def test_a_thousand_new_random_programs(data):
    check(data)
