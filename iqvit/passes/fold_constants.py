"""y = add(expand(cls_token, ...), pos_embed)  ->  y = get_attr of the sum"""

from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from iqvit.canonical import aten, constant
from iqvit.passes.editing import (
    add_constant,
    hint_of,
    local_hint,
    packet_of,
    substitute,
)

# Their values are not defined.
UNDEFINED = (aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided)


def fold_constants(module: fx.GraphModule) -> None:
    """Evaluate every call that depends on parameters and numbers only.

    Covers the interpolation of position embeddings, class tokens, masks and index grids. The
    buffers of intermediate values never exist: only what a remaining node reads is stored.
    """
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = constant(node)
        elif _is_foldable(node, values):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        folded = node.op == "call_function" and isinstance(value, Tensor)
        if folded and any(user not in values for user in node.users):
            substitute(node, add_constant(node, value, _hint(node)))


def _is_foldable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op != "call_function" or not all(arg in values for arg in node.all_input_nodes):
        return False
    if node.target is getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    writes = node.target._schema.is_mutable
    return not random and not writes and packet_of(node) not in UNDEFINED


def _hint(node: fx.Node) -> str:
    """The name of the only parameter it was made from, else of the call itself."""
    origins: set[str] = set()
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op == "get_attr":
            origins.add(hint_of(current))
        stack += [source for source in current.all_input_nodes if source not in seen]
        seen.update(current.all_input_nodes)
    return origins.pop() if len(origins) == 1 else local_hint(node, node.name)
