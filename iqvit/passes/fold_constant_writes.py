"""grid = stack([x, y]); div_(select(grid, 2, 0), 12)  ->  grid = get_attr of the result"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from iqvit.canonical import aten, constant
from iqvit.passes.editing import add_constant, is_call, local_hint

EMPTY = (aten.empty, aten.empty_like, aten.new_empty)


def fold_constant_writes(module: fx.GraphModule) -> None:
    """Evaluate constants that are computed in place, through views: anchors, grids, shapes.

    The calls that depend on no image run in the order of the graph, on the memory that they share;
    whoever else reads their values gets a copy of what they hold at that moment. Where the image is
    written into such memory everything is left alone, and so is what depends on memory that was
    never written.
    """
    if not any(_writes(node) for node in module.graph.nodes):
        return
    values = _evaluate(module.graph, 0)
    written = {_memory(v) for n, v in values.items() if _writes(n) and isinstance(v, Tensor)}
    shared = [n for n, v in values.items() if isinstance(v, Tensor) and _memory(v) in written]
    if any(_writes(user) and user not in values for n in shared for user in n.users):
        return
    _fold(module.graph)
    for node in reversed(list(module.graph.nodes)):
        if node in values and node.op == "call_function" and not node.users:
            module.graph.erase_node(node)


def _evaluate(graph: fx.Graph, unwritten: int) -> dict[fx.Node, Any]:
    """The values of all calls that do not depend on the image, as they are in the end."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        _step(node, values, unwritten)
    return values


def _fold(graph: fx.Graph) -> None:
    """Give every other call the values that it reads; two fillings tell what was never written."""
    values: dict[fx.Node, Any] = {}
    others: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        _step(node, others, 1)
        if _step(node, values, 0) or node.op == "placeholder":
            continue
        for source in node.all_input_nodes:
            value = values.get(source)
            if source.op != "call_function" or not isinstance(value, Tensor):
                continue
            if torch.equal(value.nan_to_num(), others[source].nan_to_num()):
                hint = local_hint(source, source.name)
                node.replace_input_with(source, add_constant(node, value, hint))


def _step(node: fx.Node, values: dict[fx.Node, Any], unwritten: int) -> bool:
    """Evaluate a node into `values`, if it is one that can be; new memory holds `unwritten`."""
    if node.op == "get_attr":
        values[node] = constant(node).clone()
    elif _is_foldable(node, values):
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        if is_call(node, *EMPTY):
            values[node].fill_(unwritten)
    return node in values


def _is_foldable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op != "call_function" or not all(arg in values for arg in node.all_input_nodes):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
