"""Programs drawn at random, compiled whole: the integers of the interpreter."""

import numpy as np
import pytest
import torch
from growing import drawn_images, grow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loose import needs, program

from iqvit.interpret import evaluate

LARGE = [HealthCheck.large_base_example, HealthCheck.too_slow, HealthCheck.data_too_large]


def check(data):
    target = data.draw(st.sampled_from(["x86-vbmi", "x86-vnni", "x86-avx2", "portable"]))
    needs(target)
    graph = grow(data)
    run = program(graph, target)
    for pixels in torch.from_numpy(drawn_images(graph.input.type.shape)):
        expected = evaluate(graph, pixels[None])
        for name, found in zip(expected, run(pixels[None].numpy()), strict=True):
            assert np.array_equal(found, expected[name].numpy()), name


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=LARGE)
@given(st.data())
def test_random_programs_give_the_integers_of_the_interpreter(data):
    check(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=False, suppress_health_check=LARGE)
@given(st.data())
def test_a_thousand_new_random_programs(data):
    check(data)
