"""One conversion, and which of its integer nodes stand for what the float graph computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from iqvit.calibrated import Calibrated
from iqvit.canonical import CanonicalModel
from iqvit.convert import Conversion, converted
from iqvit.intgraph import IntGraph


@dataclass(frozen=True)
class Program:
    """A program with the float graph's names for its nodes.

    values: the integer node of every float node. operands: of the float nodes that read a value in
    another form than the one it has for others, the integer node of that form, by float node and
    source.
    """

    graph: IntGraph
    values: Mapping[str, str]
    operands: Mapping[str, Mapping[str, str]]


def make_program(
    model: CanonicalModel, calibrated: Calibrated, meta: Mapping[str, Any] | None = None
) -> Program:
    """`iqvit.convert`, with what stands for what."""
    conversion = converted(model, calibrated)
    graph = conversion.finish(meta)
    values = {node.name: made.name for node, made in conversion.values.items()}
    operands = {node.name: _operands(conversion, node) for node in conversion.values}
    return Program(graph, values, {name: forms for name, forms in operands.items() if forms})


def _operands(conversion: Conversion, node: fx.Node) -> dict[str, str]:
    """The special forms that a node's integers read, by the name of the float node read."""
    nodes = conversion.builder.nodes
    forms = {
        f"{source.name}_{form}": source.name
        for source in node.all_input_nodes
        for form in ("narrow", "rows")
    }
    whole = {made.name for made in conversion.values.values()}
    found: dict[str, str] = {}
    pending = [conversion.values[node].name]
    while pending:
        current = pending.pop()
        for name in nodes[current].inputs:
            if name in forms:
                found[forms[name]] = name
            elif name not in whole:
                pending.append(name)
    return found
