"""The proofs: what they state, their head-room, and that a broken graph is refused."""

import dataclasses

import numpy as np
import pytest

from iqvit.errors import GraphError
from iqvit.intgraph import GraphBuilder, IntGraph
from iqvit.ops import Input, Linear, Reshape
from iqvit.verify import Proof, prove, tightest


@pytest.fixture
def graph() -> IntGraph:
    builder = GraphBuilder()
    image = builder.add("image", Input((1, 1, 1, 4)), [])
    x = builder.add("x", Reshape((1, 4)), [image])
    w = builder.constant("w", np.array([[1, -1, 2, -2], [9, 0, 0, 0]], np.int8))
    b = builder.constant("b", np.array([10, -10], np.int32))
    m = builder.constant("m", np.ones(2, np.int32))
    y = builder.add("y", Linear(3, 0, "int8", -128, 127), [x, w, b, m])
    return builder.finish({"out": y.name})


def test_every_value_and_accumulator_is_stated(graph: IntGraph):
    proofs = prove(graph)
    assert [(p.node, p.what) for p in proofs] == [
        ("image", "value"),
        ("x", "value"),
        ("w", "constant"),
        ("b", "constant"),
        ("m", "constant"),
        ("y", "value"),
        ("y", "accumulator"),
    ]
    assert proofs[0] == Proof("image", "value", "uint8", 0, 255)
    assert proofs[5] == Proof("y", "value", "int8", -94, 127)
    # 9 * 255 - 10 of the second row, -3 * 255 + 10 of the first
    assert proofs[6] == Proof("y", "accumulator", "int32", -3 * 255 + 10, 9 * 255 - 10)
    assert tightest(proofs) == proofs[6]
    assert "fits int32, 19 bits of head-room" in str(proofs[6])


@pytest.mark.parametrize(
    ("dtype", "lo", "hi", "bits"),
    [
        ("int32", -(2**31), 0, 0),
        ("int32", -(2**30), 2**30 - 1, 1),
        ("int32", -(2**30) - 1, 0, 0),
        ("int32", 0, 2**31 - 1, 0),
        ("int32", 0, 1, 30),
        ("int32", -1, 0, 31),
        ("int32", 0, 0, 32),
        ("uint8", 0, 255, 0),
        ("uint8", 100, 127, 1),
        ("int8", -64, 63, 1),
    ],
)
def test_headroom(dtype: str, lo: int, hi: int, bits: int):
    assert Proof("x", "value", dtype, lo, hi).headroom_bits == bits


def test_without_accumulators_nothing_is_tightest(graph: IntGraph):
    assert tightest(prove(graph)[:5]) is None


def test_attribute_that_is_no_integer_is_refused(graph: IntGraph):
    nodes = {node.name: node for node in graph}
    op = Reshape((1, 4.0))  # type: ignore[arg-type]
    nodes["x"] = dataclasses.replace(nodes["x"], op=op)
    forged = IntGraph(tuple(nodes.values()), graph.outputs)
    with pytest.raises(GraphError, match=r"attribute shape of node 'x' is \(1, 4\.0\)"):
        prove(forged)


def test_changed_graph_is_refused(graph: IntGraph):
    kind = dataclasses.replace(graph["y"].type, hi=126)
    nodes = tuple(
        dataclasses.replace(node, type=kind) if node.name == "y" else node for node in graph
    )
    object.__setattr__(graph, "nodes", nodes)
    with pytest.raises(GraphError, match="is typed"):
        prove(graph)
