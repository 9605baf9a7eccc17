"""The graph: how it is built, what it refuses, and its hash."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from iqvit.errors import GraphError, OverflowProofError
from iqvit.intgraph import GraphBuilder, IntGraph, Node
from iqvit.inttype import IntType, QParams
from iqvit.ops import Input, Linear, Requantise, Reshape


def build(
    *,
    weight: int = 3,
    shift: int = 4,
    zero: int = 0,
    scale: float = 0.25,
    output: str = "logits",
    origin: str = "head",
    image: int = 4,
) -> IntGraph:
    """Pixels, flattened, through one linear."""
    builder = GraphBuilder()
    x = builder.add("image", Input((1, 1, 2, image)), [], qparams=QParams.of(1 / 255))
    flat = builder.add("flat", Reshape((1, 2 * image)), [x])
    w = builder.constant("w", np.full((3, 2 * image), weight, np.int8))
    b = builder.constant("b", np.array([-5, 0, 5], np.int32))
    m = builder.constant("m", np.array([1, 2, 3], np.int32))
    y = builder.add(
        "head",
        Linear(shift, zero, "int16", -(2**15), 2**15 - 1),
        [flat, w, b, m],
        qparams=QParams.of(scale),
        origin=origin,
        source="head, vit.py:3",
    )
    return builder.finish({output: y.name}, {"labels": ["a", "b", "c"]})


def test_builder_infers_types_and_keeps_order():
    graph = build()
    assert [node.name for node in graph] == ["image", "flat", "w", "b", "m", "head"]
    assert graph.input.type == IntType("uint8", (1, 1, 2, 4), 0, 255)
    assert graph["w"].type == IntType("int8", (3, 8), 3, 3)
    # (8 * 255 * 3 + 5) * 3 + 8 >> 4
    assert graph["head"].type == IntType("int16", (1, 3), -1, 1148)
    assert set(graph.constants) == {"w", "b", "m"}
    assert graph.types_of(graph["head"])[0].shape == (1, 8)


def test_builder_makes_names_unique_and_drops_what_is_not_needed():
    builder = GraphBuilder()
    x = builder.add("x", Input((1, 4)), [])
    names = [builder.add("y", Reshape((4, 1)), [x]).name for _ in range(3)]
    assert names == ["y", "y_2", "y_3"]
    graph = builder.finish({"out": "y_3"})
    assert [node.name for node in graph] == ["x", "y_3"]


def test_graph_is_frozen():
    graph = build()
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        graph.outputs["more"] = "head"  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        graph.constants["w"][0, 0] = 1


def overflowing() -> IntGraph:
    """512 x 255 x 127 x 129 is above 2**31 - 1."""
    builder = GraphBuilder()
    count = 2**31 // (255 * 127) + 1
    x = builder.add("image", Input((1, count)), [])
    w = builder.constant("w", np.full((1, count), 127, np.int8))
    b, m = (builder.constant(n, np.array([1], np.int32)) for n in "bm")
    linear = Linear(8, 0, "int8", -128, 127)
    y = builder.add("fc", linear, [x, w, b, m], source="blocks.0.mlp.fc1, vit.py:42")
    return builder.finish({"out": y.name})


def test_graph_that_could_overflow_does_not_build():
    with pytest.raises(OverflowProofError) as caught:
        overflowing()
    lines = str(caught.value).split("\n")
    assert len(lines) == 4
    highest = (2**31 // (255 * 127) + 1) * 255 * 127 + 1
    assert lines[0] == (
        f"OverflowProof: the accumulator range 1..{highest} leaves int32 (-2147483648..2147483647)"
    )
    assert lines[1].startswith("  node    fc = linear(uint8[1,66312] 0..255, int8[1,66312]")
    assert lines[2] == "  from    blocks.0.mlp.fc1, vit.py:42"
    assert lines[3].startswith("  remedy  ")


def test_wrong_types_name_the_node():
    builder = GraphBuilder()
    x = builder.add("x", Input((1, 4)), [])
    with pytest.raises(GraphError, match=r"node    y = reshape"):
        builder.add("y", Reshape((5,)), [x])


def edited(change: Callable[[dict[str, Node]], object]) -> IntGraph:
    graph = build()
    nodes = {node.name: node for node in graph}
    change(nodes)
    return IntGraph(tuple(nodes.values()), graph.outputs, graph.meta)


def retype(nodes: dict[str, Node]) -> None:
    kind = dataclasses.replace(nodes["head"].type, hi=5)
    nodes["head"] = dataclasses.replace(nodes["head"], type=kind)


def double(nodes: dict[str, Node]) -> None:
    nodes["again"] = nodes["flat"]


def second_image(nodes: dict[str, Node]) -> None:
    nodes["more"] = dataclasses.replace(nodes["image"], name="more")


def valueless(nodes: dict[str, Node]) -> None:
    kind = dataclasses.replace(nodes["w"].type, value=None)
    nodes["w"] = dataclasses.replace(nodes["w"], type=kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (retype, "is typed .* proved"),
        (double, "two nodes are named 'flat'"),
        (second_image, "one image input, this one has 2"),
        (valueless, "constant 'w' does not have the value"),
        (lambda nodes: nodes.pop("flat"), "reads 'flat', which is not before it"),
        (lambda nodes: nodes.pop("head"), "no node computes"),
    ],
)
def test_check_refuses(change: Callable[[dict[str, Node]], object], message: str):
    with pytest.raises(GraphError, match=message):
        edited(change)


def test_unknown_names_and_no_outputs():
    graph = build()
    with pytest.raises(GraphError, match="no node is named 'nobody'"):
        graph["nobody"]
    with pytest.raises(GraphError, match="none named"):
        IntGraph(graph.nodes, {})


def test_hash_is_stable():
    assert build().hash == build().hash
    assert len(build().hash) == 64


def test_hash_takes_no_notice_of_meta():
    graph = build()
    assert IntGraph(graph.nodes, graph.outputs, {"other": 1}).hash == graph.hash


def test_hash_takes_no_notice_of_where_nodes_came_from():
    assert build(origin="other").hash == build().hash


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 4},
        {"shift": 5},
        {"zero": 1},
        {"scale": 0.26},
        {"output": "scores"},
        {"image": 5},
    ],
    ids=str,
)
def test_hash_changes_with(change: dict):
    assert build(**change).hash != build().hash


def test_hash_sees_a_single_element():
    graph = build()
    weight = graph.constants["w"].copy()
    hashes = set()
    for index in (0, weight.size - 1):
        changed = weight.copy()
        changed.flat[index] = 2
        kind = dataclasses.replace(graph["w"].type, lo=2, value=changed)
        builder = GraphBuilder()
        for node in graph:
            builder.nodes[node.name] = node
        builder.nodes["w"] = dataclasses.replace(graph["w"], type=kind)
        hashes.add(rebuilt(builder).hash)
    assert len(hashes | {graph.hash}) == 3


def rebuilt(builder: GraphBuilder) -> IntGraph:
    """The last node inferred anew, and finished."""
    head = builder.nodes.pop("head")
    again = builder.add(
        "head",
        head.op,
        [builder.nodes[name] for name in head.inputs],
        qparams=head.qparams,
        origin=head.origin,
        source=head.source,
    )
    return builder.finish({"logits": again.name})


def test_types_refuse():
    with pytest.raises(GraphError, match="none of"):
        IntType("float32", (1,), 0, 1)
    with pytest.raises(GraphError, match="empty range"):
        IntType("int8", (1,), 1, 0)
    with pytest.raises(OverflowProofError, match="leaves uint8"):
        IntType("uint8", (1,), -1, 3)


def test_qparams_refuse():
    with pytest.raises(GraphError, match="positive"):
        QParams.of(0.0)
    with pytest.raises(GraphError, match="axis"):
        QParams.of(np.array([1.0, 2.0]))


def test_requantise_alone_is_a_program():
    builder = GraphBuilder()
    x = builder.add("x", Input((1, 4)), [], qparams=QParams.of(0.5))
    op = Requantise.between(QParams.of(0.5), QParams.of(1.0), "uint8")
    y = builder.add("y", op, [x], qparams=QParams.of(1.0))
    graph = builder.finish({"out": y.name})
    assert (graph["y"].type.lo, graph["y"].type.hi) == (0, 128)
