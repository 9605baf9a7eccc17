"""row_linear(x, peak, w1), row_linear(x, peak, w2)  ->  slices of together(x, peak, w1 and w2)

Queries, keys and values are products of the same rows. Attention reads its operands where they lie,
so the slices are views, and one kernel is called instead of three.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from iqvit.intgraph import GraphBuilder, IntGraph, Node
from iqvit.ops.attention import Attention
from iqvit.ops.linear import known
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.slice import Slice
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.rows import form_of
from iqvit.tvm_backend.layout import LAYOUT
from iqvit.tvm_backend.together import Together


def join_products(graph: IntGraph, isa: Isa) -> IntGraph:
    """The graph with products of the same rows computed together where only attention reads them,
    and one kernel can compute them; the graph itself where there are none."""
    groups = _groups(graph, isa)
    if not groups:
        return graph
    first = {group[0].name: group for group in groups}
    joined = {node.name: (group, i) for group in groups for i, node in enumerate(group)}
    made: dict[str, Node] = {}
    builder = GraphBuilder()
    for node in graph:
        if node.name in first:
            made[node.name] = _together(builder, graph, first[node.name])
        if node.name not in joined:
            builder.nodes[node.name] = node
            continue
        group, i = joined[node.name]
        axis, columns = len(node.type.shape) - 1, node.type.shape[-1]
        part = Slice(axis, i * columns, (i + 1) * columns, 1)
        builder.add(
            node.name,
            part,
            [made[group[0].name]],
            qparams=node.qparams,
            origin=node.origin,
            source=node.source,
        )
    return builder.finish(graph.outputs, graph.meta)


def _groups(graph: IntGraph, isa: Isa) -> list[list[Node]]:
    """The nodes that can be computed together."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph:
        for name in node.inputs:
            readers[name].append(node)
    outputs = set(graph.outputs.values())

    def attended(node: Node) -> bool:
        """Whether attention alone reads the value, and where it lies."""
        return node.name not in outputs and all(
            isinstance(reader.op, Attention) or (isinstance(reader.op, LAYOUT) and attended(reader))
            for reader in readers[node.name]
        )

    found: dict[Any, list[Node]] = defaultdict(list)
    for node in graph:
        op = node.op
        if not isinstance(op, RowLinear) or op.shift < 1 or node.type.shape[-1] % isa.panel:
            continue
        form, _ = form_of(op, graph.types_of(node))
        if form is not None and attended(node):
            found[node.inputs[:2], node.type.shape, op.dtype, form].append(node)
    return [group for group in found.values() if len(group) > 1]


def _together(builder: GraphBuilder, graph: IntGraph, group: list[Node]) -> Node:
    x, peak = (builder.nodes[name] for name in group[0].inputs[:2])
    constants = [
        builder.constant(
            f"{group[0].name}_together", np.concatenate([known(graph[name].type) for name in names])
        )
        for names in zip(*(node.inputs[2:] for node in group), strict=True)
    ]
    op = Together(tuple(node.op for node in group if isinstance(node.op, RowLinear)))
    name, source = f"{group[0].name}_together", group[0].source
    return builder.add(name, op, [x, peak, *constants], source=source)
