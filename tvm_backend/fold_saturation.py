"""clamp(clamp(v, a, b), c, d)  ->  clamp(v, max(a, c), min(b, d)): a ReLU costs nothing."""

from collections import Counter
from dataclasses import replace
from typing import Any

from iqvit.intgraph import GraphBuilder, IntGraph, Node
from iqvit.ops.add import Add
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.linear import Linear
from iqvit.ops.multiply import Multiply
from iqvit.ops.requantise import Requantise

SATURATING = (Add, AvgPool, Conv2d, Linear, Multiply, Requantise)
"""Operators whose last step is to saturate at their attributes lo..hi."""


def fold_saturation(graph: IntGraph) -> IntGraph:
    """The graph with every requantisation that only saturates done by the node that it reads.

    Where only it reads that node; the node then has its name. The graph itself without any.
    """
    uses = Counter(name for node in graph for name in node.inputs)
    uses.update(graph.outputs.values())
    folds = _folds(graph, uses)
    if not folds:
        return graph
    builder = GraphBuilder()
    waiting: dict[str, Node] = {}
    for node in graph:
        made = node
        if node.inputs and node.inputs[0] in waiting:
            made = _joined(waiting.pop(node.inputs[0]), node)
        if node.name in folds:
            waiting[node.name] = made
        else:
            builder.nodes[node.name] = made
    return builder.finish(graph.outputs, graph.meta)


def _folds(graph: IntGraph, uses: Counter[str]) -> set[str]:
    """The nodes whose only reader does nothing but saturate, to limits that overlap with theirs and
    with those of all that is folded before."""
    folds: set[str] = set()
    limits: dict[str, tuple[int, int]] = {}
    for node in graph:
        op = node.op
        if not isinstance(op, Requantise) or (op.multiplier, op.offset, op.shift) != (1, 0, 0):
            continue
        source = graph[node.inputs[0]]
        if not isinstance(source.op, SATURATING) or uses[source.name] > 1:
            continue
        lo, hi = limits.get(source.name, (source.op.lo, source.op.hi))
        lo, hi = max(op.lo, lo), min(op.hi, hi)
        if lo <= hi and op.dtype == source.op.dtype:
            folds.add(source.name)
            limits[node.name] = lo, hi
    return folds


def _joined(source: Node, node: Node) -> Node:
    limits: Any = node.op
    first: Any = source.op
    op = replace(first, lo=max(first.lo, limits.lo), hi=min(first.hi, limits.hi))
    return replace(node, op=op, inputs=source.inputs)
