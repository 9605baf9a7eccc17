"""a = select(x, 1, 0); b = select(x, 1, 0)  ->  b = a"""

from typing import Any

from torch import fx

from iqvit.passes.editing import operands, substitute


def merge_duplicates(module: fx.GraphModule) -> None:
    """Compute once what is written twice: the same operator on the same arguments."""
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.kwargs:
            continue
        key = (node.target, _hashable(operands(node)))
        if key in seen:
            substitute(node, seen[key])
        else:
            seen[key] = node


def _hashable(value: Any) -> Any:
    """Lists as tuples; every other value with its type, since 1 equals 1.0 and True."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return (type(value), value)
