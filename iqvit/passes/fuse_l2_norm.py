"""y = div(x, clamp_min(linalg_vector_norm(x, 2, [-1], True), eps))  ->  y = l2_normalize(x, eps)"""

from typing import Any

from torch import fx

from iqvit.canonical import aten, l2_normalize, shape
from iqvit.passes.editing import (
    calls,
    insert,
    is_call,
    non_negative,
    operands,
    schema_arguments,
    substitute,
)

NORMS = (aten.linalg_vector_norm, aten.norm)
BROADCASTS = (aten.expand, aten.expand_as, aten.broadcast_to)
VIEWS = (aten.unsqueeze, aten.view, aten.reshape)


def fuse_l2_norm(module: fx.GraphModule) -> None:
    """Recognise a value over its own length along one axis, with or without a least length.

    What `F.normalize(x, dim=d, eps=e)` and `x / x.norm(dim=d, keepdim=True)` export to. Norms of
    other orders, over several axes or of another value stay for the checker.
    """
    for node in calls(module, aten.div, aten.divide, aten.true_divide):
        values = schema_arguments(node)
        x, length = values["self"], values["other"]
        if values.get("rounding_mode") is None and isinstance(length, fx.Node):
            found = _length_of(x, length)
            if found is not None:
                substitute(node, _normalized(node, x, *found))


def _length_of(x: Any, node: fx.Node) -> tuple[int, float] | None:
    """The axis and the least length, if the node is the length of x."""
    node = operands(node)[0] if is_call(node, *BROADCASTS) else node
    kept = shape(node)
    node = operands(node)[0] if is_call(node, *VIEWS) else node
    eps = 0.0
    if is_call(node, aten.clamp_min, aten.clamp):
        values = schema_arguments(node)
        if values.get("max") is not None or not isinstance(values.get("min"), (int, float)):
            return None
        eps, node = float(values["min"]), values["self"]
    node = operands(node)[0] if is_call(node, *VIEWS) else node
    if not is_call(node, *NORMS):
        return None
    values = schema_arguments(node)
    order, dims = values.get("ord", values.get("p")), values.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if values["self"] is not x or order not in (None, 2) or not dims or len(dims) != 1:
        return None
    axis = non_negative(dims[0], len(shape(x)))
    expected = (*shape(x)[:axis], 1, *shape(x)[axis + 1 :])
    return (axis, eps) if kept == expected else None


def _normalized(node: fx.Node, x: fx.Node, axis: int, eps: float) -> fx.Node:
    rank = len(shape(x))
    if axis == rank - 1:
        return insert(node, l2_normalize, x, eps)
    swap = [*range(rank)]
    swap[axis], swap[-1] = rank - 1, axis
    turned = insert(node, aten.permute.default, x, swap)
    return insert(node, aten.permute.default, insert(node, l2_normalize, turned, eps), swap)
