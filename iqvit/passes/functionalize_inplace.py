"""x.relu_(); y = f(x)  ->  z = relu(x); y = f(z)"""

from typing import Any

import torch
from torch import fx

from iqvit.canonical import aten
from iqvit.passes.editing import is_call, operands, substitute

# Outside training these return their input itself, which their schemas do not say.
ALIASES = (aten.dropout, aten.feature_dropout)


def functionalize_inplace(module: fx.GraphModule) -> None:
    """Replace in-place operators by their functional twins.

    Only where no view shares the memory of what is written: there the writing would have been
    seen through the view. Others stay, and the checker reports them.
    """
    for node in list(module.graph.nodes):
        twin = _functional_twin(node)
        if twin is None or _is_shared(node):
            continue
        written = operands(node)[0]
        with module.graph.inserting_before(node):
            new = module.graph.call_function(twin, node.args, node.kwargs)
        new.meta = dict(node.meta)
        _redirect_later_users(written, node, new)
        substitute(node, new)


def _functional_twin(node: fx.Node) -> Any:
    """`aten.relu.default` for a call of `aten.relu_.default`, else None."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target.overloadpacket.__name__
    if not name.endswith("_") or name.endswith("__") or not node.target._schema.is_mutable:
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, node.target._overloadname, None)


def _is_shared(node: fx.Node) -> bool:
    written = operands(node)[0]
    if not isinstance(written, fx.Node) or written.op == "get_attr" or _is_view(written):
        return True
    return any(_is_view(user) for user in written.users if user is not node and user < node)


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    reads = [arg.alias_info for arg in node.target._schema.arguments]
    return is_call(node, *ALIASES) or any(info and not info.is_write for info in reads)


def _redirect_later_users(written: Any, node: fx.Node, new: fx.Node) -> None:
    for user in list(written.users):
        if user > node:
            user.replace_input_with(written, new)
