"""The cost of a small program, counted by hand."""

import numpy as np
import pytest

from iqvit.cost import cost, parameters
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.ops import Add, Input, Linear, Lookup, Matmul, Reshape


def build() -> IntGraph:
    builder = GraphBuilder()
    limits = (-(2**15), 2**15 - 1)
    image = builder.add("image", Input((1, 1, 3, 4)), [])
    x = builder.add("x", Reshape((1, 3, 4)), [image])
    w = builder.constant("w", np.ones((5, 4), np.int8))
    b = builder.constant("b", np.zeros(5, np.int32))
    m = builder.constant("m", np.ones(5, np.int32))
    y = builder.add("y", Linear(0, 0, "int16", *limits), [x, w, b, m])
    embedding = builder.constant("embedding", np.ones((1, 3, 5), np.int16))
    z = builder.add("z", Add(1, 1, 0, 0, "int16", *limits), [y, embedding])
    table = builder.constant("table", np.zeros(256, np.int8))
    looked = builder.add("looked", Lookup(), [x, table])
    right = builder.constant("right", np.ones((1, 5, 2), np.int8))
    product = builder.add("product", Matmul(1, 4, 0, "int8", -128, 127), [z, right])
    return builder.finish({"out": product.name, "looked": looked.name})


def test_cost():
    found = cost(build())
    assert found.macs_by_op == {"linear": 3 * 4 * 5, "matmul": 3 * 5 * 2}
    assert found.macs == 90
    assert found.wide_macs == 30
    assert found.eight_bit_share == pytest.approx(60 / 90)
    assert found.nodes == {
        "add": 1,
        "input": 1,
        "linear": 1,
        "lookup": 1,
        "matmul": 1,
        "reshape": 1,
    }
    # w, b, embedding and the constant operand of the product, not m and not the table
    assert found.params == 20 + 5 + 15 + 10
    assert found.bytes == 20 + 4 * 5 + 4 * 5 + 2 * 15 + 256 + 10
    # y and z (int16[1,3,5]) and x (uint8[1,3,4]), which the table reads later
    assert found.peak_bytes == 30 + 30 + 12


def test_parameters_are_counted_once():
    builder = GraphBuilder()
    image = builder.add("image", Input((1, 1, 1, 4)), [])
    shared = builder.constant("shared", np.ones((1, 4), np.int16))
    op = Add(1, 1, 0, 0, "int16", -(2**15), 2**15 - 1)
    a = builder.add("a", op, [image, shared])
    b = builder.add("b", op, [a, shared])
    graph = builder.finish({"out": b.name})
    assert parameters(graph) == {"shared"}
    assert cost(graph).params == 4


def test_program_without_products():
    builder = GraphBuilder()
    image = builder.add("image", Input((1, 4)), [])
    found = cost(builder.finish({"out": image.name}))
    assert (found.macs, found.params, found.bytes, found.peak_bytes) == (0, 0, 0, 4)
    assert found.eight_bit_share == 1.0
