"""IntGraph: the integer program, frozen, in topological order, every value typed with its range."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from iqvit.errors import GraphError, OverflowProofError, node_message
from iqvit.inttype import IntType, QParams, constant_type
from iqvit.ops.base import Op
from iqvit.ops.constant import Constant
from iqvit.ops.input import Input

__all__ = [
    "GraphBuilder",
    "IntGraph",
    "Node",
]


@dataclass(frozen=True)
class Node:
    """One value of the program: `name = op(inputs)`.

    `origin` is the canonical float node that it stands for ("" for helpers), `source` the module
    path and source line that node came from, `qparams` what the integers mean (metadata).
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    type: IntType
    origin: str = ""
    source: str = ""
    qparams: QParams | None = field(default=None, compare=False)


@dataclass(frozen=True)
class IntGraph:
    """A whole program: one uint8 image in, named integer tensors out.

    `outputs` maps output names to node names. `meta` is plain JSON data for people and loaders
    (model name, labels, preprocessing); it changes no integer. Raises `GraphError` when names are
    unknown, repeated or out of order, or a stored type is not the one its operator infers.
    """

    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))
        object.__setattr__(self, "_by_name", check(self))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        by_name: dict[str, Node] = getattr(self, "_by_name")  # noqa: B009
        if name not in by_name:
            raise GraphError(f"no node is named {name!r}")
        return by_name[name]

    @property
    def input(self) -> Node:
        """The image node."""
        return next(node for node in self.nodes if isinstance(node.op, Input))

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """All constant tensors by node name."""
        return {n.name: n.type.value for n in self.nodes if n.type.value is not None}

    def types_of(self, node: Node) -> list[IntType]:
        """Types of a node's inputs."""
        return [self[name].type for name in node.inputs]

    @property
    def hash(self) -> str:
        """SHA-256 of the program: text, constants and what the outputs stand for.

        Where nodes came from takes no part: the same program from another folder is the same.
        """
        from iqvit.text import print_graph

        digest = hashlib.sha256(print_graph(self, comments=False).encode())
        for name, value in sorted(self.constants.items()):
            digest.update(f"\n{name} {value.dtype.name} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        for name, node in sorted(self.outputs.items()):
            digest.update(json.dumps([name, qparams_json(self[node].qparams)]).encode())
        return digest.hexdigest()


def qparams_json(qparams: QParams | None) -> dict[str, Any] | None:
    """Scale and zero point as plain JSON data (float64 round-trips exactly through repr)."""
    if qparams is None:
        return None
    return {
        "scale": qparams.scale.tolist(),
        "zero_point": qparams.zero_point.tolist(),
        "axis": qparams.axis,
    }


def infer_node(name: str, op: Op, types: list[IntType], source: str) -> IntType:
    """`op.infer` with the node named in whatever goes wrong."""
    try:
        return op.infer(*types)
    except OverflowProofError as error:
        described = ", ".join(map(str, types))
        raise OverflowProofError(
            node_message(
                f"OverflowProof: {error}",
                f"{name} = {op.NAME}({described})",
                source,
                "use fewer bits for this node, or split it",
            )
        ) from error
    except GraphError as error:
        raise GraphError(
            node_message(f"GraphError: {error}", f"{name} = {op.NAME}", source, "see the operator")
        ) from error


def check(graph: IntGraph) -> dict[str, Node]:
    """Prove the graph: order, names, one image, every type inferred anew. Returns the names."""
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        if node.name in seen:
            raise GraphError(f"two nodes are named {node.name!r}")
        unknown = [name for name in node.inputs if name not in seen]
        if unknown:
            raise GraphError(f"node {node.name!r} reads {unknown[0]!r}, which is not before it")
        if not isinstance(node.op, Constant):
            types = [seen[name].type for name in node.inputs]
            inferred = infer_node(node.name, node.op, types, node.source)
            if inferred != node.type:
                raise GraphError(f"node {node.name!r} is typed {node.type}, proved {inferred}")
        elif node.type.value is None or constant_type(node.type.value) != node.type:
            raise GraphError(
                f"constant {node.name!r} does not have the value of its type {node.type}"
            )
        seen[node.name] = node
    images = [node.name for node in graph.nodes if isinstance(node.op, Input)]
    if len(images) != 1:
        raise GraphError(f"a graph has one image input, this one has {len(images)}: {images}")
    missing = [name for name in graph.outputs.values() if name not in seen]
    if missing or not graph.outputs:
        raise GraphError(f"outputs that no node computes: {missing or 'none named'}")
    return seen


def kept_nodes(nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """The image and, of `nodes` in their order, those that the nodes named `outputs` need."""
    needed = set(outputs)
    for node in reversed(nodes):
        if node.name in needed or isinstance(node.op, Input):
            needed.update((node.name, *node.inputs))
    return tuple(node for node in nodes if node.name in needed)


class GraphBuilder:
    """Grows a graph node by node; types are inferred, and so proved, on the way."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def unique(self, name: str) -> str:
        """`name`, or the first free `name_2`, `name_3`..."""
        if name not in self.nodes:
            return name
        count = 2
        while f"{name}_{count}" in self.nodes:
            count += 1
        return f"{name}_{count}"

    def constant(self, name: str, value: np.ndarray, qparams: QParams | None = None) -> Node:
        """Add a constant tensor; its dtype must be one of the graph's."""
        node = Node(self.unique(name), Constant(), (), constant_type(value), qparams=qparams)
        self.nodes[node.name] = node
        return node

    def add(
        self,
        name: str,
        op: Op,
        inputs: list[Node],
        *,
        qparams: QParams | None = None,
        origin: str = "",
        source: str = "",
    ) -> Node:
        """Add `name = op(inputs)`; raises `OverflowProofError` or `GraphError` naming the node."""
        name = self.unique(name)
        inferred = infer_node(name, op, [node.type for node in inputs], source)
        names = tuple(node.name for node in inputs)
        node = Node(name, op, names, inferred, origin, source, qparams)
        self.nodes[name] = node
        return node

    def finish(self, outputs: Mapping[str, str], meta: Mapping[str, Any] | None = None) -> IntGraph:
        """The frozen graph without the nodes that no output needs."""
        kept = kept_nodes(tuple(self.nodes.values()), outputs.values())
        return IntGraph(kept, outputs, meta or {})
