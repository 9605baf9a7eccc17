"""y = log(div(clamp(x, e), clamp(rsub(x, 1), e))), x = sigmoid(u)  ->  y = clamp(u, -11.5, 11.5)"""

from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from iqvit.canonical import aten, constant
from iqvit.passes.editing import calls, insert, is_call, operands, substitute

INSIDE = (aten.div, aten.clamp, aten.clamp_min, aten.clamp_max, aten.rsub, aten.sub, aten.add,
          aten.mul, aten.neg, aten.log)  # fmt: skip
REACH = 30.0  # sigmoid is 1 in float32 from 17 on
TOLERANCE = 2e-3  # of the logit, where a bound of the sigmoid is 1e-3
OF_SIGMOID = 1e-5


def fuse_logit(module: fx.GraphModule) -> None:
    """Remove the inverse sigmoid of a sigmoid, which DETR's box refinement is full of.

    A clipped inverse sigmoid of sigmoid(u) is u clipped to the logits of the bounds: no logarithm,
    no division. `torch.logit` and any way to write it by elementwise operators are recognised by
    their values: replaced only if both agree in float64 for all |u| <= 30.
    """
    for node in calls(module, aten.log, aten.logit, aten.special_logit, aten.sub):
        region = _region(node)
        if region is None:
            continue
        nodes, u = region
        bound = _bound(nodes, node, u)
        if bound is not None:
            substitute(node, insert(node, aten.clamp.default, operands(u)[0], -bound, bound))


def _region(node: fx.Node) -> tuple[list[fx.Node], fx.Node] | None:
    """The elementwise calls between one sigmoid and `node`; None where there is more to read."""
    found = {node}
    leaves: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        current = pending.pop()
        if current in found or current.op == "get_attr":
            continue
        if is_call(current, *INSIDE):
            found.add(current)
            pending += current.all_input_nodes
        else:
            leaves.add(current)
    logarithms = (aten.log, aten.logit, aten.special_logit)
    if len(leaves) != 1 or not any(is_call(n, *logarithms) for n in found):
        return None
    (leaf,) = leaves
    if not is_call(leaf, aten.sigmoid):
        return None
    return [n for n in node.graph.nodes if n in found], leaf


def _bound(nodes: list[fx.Node], last: fx.Node, sigmoid: fx.Node) -> float | None:
    """Where the region clips u, if that is all that it does."""
    u = torch.linspace(-REACH, REACH, 60001, dtype=torch.float64)
    env: dict[fx.Node, Any] = {sigmoid: torch.sigmoid(u)}

    def read(node: fx.Node) -> Any:
        value = env[node] if node in env else constant(node)
        return value.double()

    for node in nodes:
        if any(constant(n).numel() != 1 for n in node.all_input_nodes if n.op == "get_attr"):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), read)
        env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    bound = round(float(env[last][-1]), 4)
    if not 0 < bound < REACH:
        return None
    clipped = u.clamp(-bound, bound)
    near = float((env[last] - clipped).abs().max()) <= TOLERANCE
    same = float((env[last].sigmoid() - clipped.sigmoid()).abs().max()) <= OF_SIGMOID
    return bound if near and same else None
