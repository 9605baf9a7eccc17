"""y = add(linear(x, w, b), c)  ->  y = linear(x, w, b + c)"""

from torch import Tensor, fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import (
    add_constant,
    calls,
    hint_of,
    insert,
    is_call,
    operands,
    substitute,
)


def fold_biases(module: fx.GraphModule) -> None:
    """Fold the addition of a constant per output channel into the linear before it."""
    for node in calls(module, aten.add):
        linear, addend = operands(node)
        if not is_call(linear, aten.linear) or len(linear.users) != 1 or not is_constant(addend):
            continue
        x, weight, bias = operands(linear)
        extra = _per_channel(constant(addend), shape(weight)[0])
        if extra is None or shape(linear) != shape(node):
            continue
        total = extra if bias is None else constant(bias) + extra
        hint = hint_of(addend) if bias is None else hint_of(bias)
        new = insert(node, aten.linear.default, x, weight, add_constant(node, total, hint))
        new.meta["source"] = linear.meta["source"]
        substitute(node, new)


def _per_channel(value: Tensor, channels: int) -> Tensor | None:
    if value.numel() == 1:
        return value.reshape(1).expand(channels)
    per_channel = value.numel() == channels and value.shape[-1] == channels
    return value.reshape(channels) if per_channel else None
