"""Convert: canonical float graph and calibration become an IntGraph; nothing is decided here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx

from iqvit.calibrated import Calibrated, Point
from iqvit.canonical import CanonicalModel, constant, is_constant, op_of
from iqvit.converters import CONVERTERS
from iqvit.errors import GraphError, node_message
from iqvit.intgraph import GraphBuilder, IntGraph, Node
from iqvit.inttype import QParams
from iqvit.ops.base import Op
from iqvit.ops.input import Input
from iqvit.ops.requantise import Requantise


class Conversion:
    """The state of one conversion: what the converters of `iqvit.converters` work with."""

    def __init__(self, model: CanonicalModel, calibrated: Calibrated) -> None:
        self.model = model
        self.calibrated = calibrated
        self.builder = GraphBuilder()
        self.values: dict[fx.Node, Node] = {}

    def point(self, node: fx.Node) -> Point:
        """The primary integer form of a value."""
        return self.calibrated.points[node.name]

    def emit(
        self, node: fx.Node, op: Op, inputs: list[Node], qparams: QParams | None, suffix: str = ""
    ) -> Node:
        """Add an integer node that stands for (a part of) a float node."""
        return self.builder.add(
            f"{node.name}{suffix}",
            op,
            inputs,
            qparams=qparams,
            origin="" if suffix else node.name,
            source=str(node.meta["source"]),
        )

    def shared(self, node: fx.Node, op: Op, inputs: list[Node], suffix: str) -> Node:
        """A helper of a float node that all its readers share; it has no scale of its own."""
        existing = self.builder.nodes.get(f"{node.name}{suffix}")
        return existing if existing is not None else self.emit(node, op, inputs, None, suffix)

    def constant(
        self, node: fx.Node, what: str, value: np.ndarray, qparams: QParams | None = None
    ) -> Node:
        """Add a constant that belongs to a float node."""
        return self.builder.constant(f"{node.name}.{what}", np.ascontiguousarray(value), qparams)

    def value(self, source: fx.Node) -> Node:
        """The integer node of a float node in its primary form."""
        if source not in self.values:
            raise self.fault(source, f"a constant {source.name} where a computed value is needed")
        return self.values[source]

    def narrow(self, source: fx.Node) -> Node:
        """The 8-bit form in which matrix products read a value."""
        node = self.value(source)
        point = self.calibrated.narrow.get(source.name)
        if point is None:
            return node
        return self.requantised(node, point, f"{source.name}_narrow")

    def requantised(self, node: Node, point: Point, name: str) -> Node:
        """`node` in another form; the same node where it already has it."""
        qin = self.qparams(node)
        if node.type.dtype == point.dtype and qin.same_as(point.qparams):
            return node
        if qin.per_channel or point.qparams.per_channel:
            raise GraphError(f"{node.name}: scales per channel cannot be requantised to {name}")
        existing = self.builder.nodes.get(name)
        if existing is not None:
            return existing
        op = Requantise.between(qin, point.qparams, point.dtype, point.limits)
        return self.builder.add(
            name, op, [node], qparams=point.qparams, origin="", source=node.source
        )

    def operand(self, source: fx.Node, owner: fx.Node, what: str) -> Node:
        """A computed value, or a constant at 16 bits with its own scale."""
        if not is_constant(source):
            return self.value(source)
        value = constant(source).double()
        scale = max(float(value.abs().max()), 1e-30) / 32767
        return self.quantised(owner, what, source, Point("int16", QParams.of(scale)))

    def quantised(self, owner: fx.Node, what: str, source: fx.Node, point: Point) -> Node:
        """A float constant in a given form."""
        q = point.qparams.quantize(constant(source), *point.limits).numpy()
        return self.constant(owner, what, q.astype(point.dtype), point.qparams)

    def qparams(self, node: Node) -> QParams:
        """What a node's integers mean; every converted value has that."""
        if node.qparams is None:
            raise GraphError(f"node {node.name!r} has no scale")
        return node.qparams

    def finish(self, meta: Mapping[str, Any] | None = None) -> IntGraph:
        """The program of what was converted, with the model's outputs."""
        outputs = {name: self.value(node).name for name, node in self.model.outputs.items()}
        return self.builder.finish(outputs, meta)

    def fault(
        self, node: fx.Node, what: str, remedy: str = "rewrite this part of the model"
    ) -> GraphError:
        """An error about a float node, in the usual four lines."""
        return GraphError(
            node_message(f"GraphError: {what}", node.name, str(node.meta["source"]), remedy)
        )


def convert(
    model: CanonicalModel, calibrated: Calibrated, meta: Mapping[str, Any] | None = None
) -> IntGraph:
    """The integer program of a calibrated model.

    Its input is the uint8 image, its outputs have the model's names. Raises `OverflowProofError`
    when a proved range leaves its type, `GraphError` for a node that cannot be converted; both
    name the node and its source.
    """
    return converted(model, calibrated).finish(meta)


def converted(model: CanonicalModel, calibrated: Calibrated) -> Conversion:
    """`convert` before its last stage, with the integer node of every float node."""
    conversion = Conversion(model, calibrated)
    for node in model.module.graph.nodes:
        if node.op == "placeholder":
            point = conversion.point(node)
            conversion.values[node] = conversion.builder.add(
                node.name, Input(model.input_shape), [], qparams=point.qparams, origin=node.name
            )
        elif node.op == "call_function":
            conversion.values[node] = CONVERTERS[op_of(node).name](conversion, node)
    return conversion
