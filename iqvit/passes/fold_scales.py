"""y = add(mul(conv2d(x, w, b), s), t)  ->  y = conv2d(x, s * w, s * b + t)"""

from typing import Any

from torch import Tensor, fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import (
    add_constant,
    calls,
    hint_of,
    insert,
    is_call,
    local_hint,
    operands,
    substitute,
)


def fold_scales(module: fx.GraphModule) -> None:
    """Fold products and sums with a constant per channel into the convolution before them: batch
    normalisation with frozen statistics, written out. Computed in float64."""
    for node in calls(module, aten.mul, aten.add):
        conv, factor = operands(node)[:2]
        if not is_call(conv, aten.conv2d) or len(conv.users) != 1 or not is_constant(factor):
            continue
        value = _per_channel(constant(factor), shape(conv))
        if value is not None and shape(node) == shape(conv):
            _fold(node, conv, value, is_call(node, aten.mul))


def _per_channel(value: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """A vector over the channels of an image, if that is what broadcasts over it."""
    if value.numel() == 1:
        return value.double().reshape(1).expand(size[1])
    sides = value.shape[-2:] if value.dim() >= 3 else ()
    plain = value.numel() == size[1] and tuple(sides) == (1, 1)
    return value.double().reshape(-1) if plain else None


def _fold(node: fx.Node, conv: fx.Node, value: Tensor, scales: bool) -> None:
    x, weight, bias, *geometry = operands(conv)
    total: Any = None if bias is None else constant(bias).double()
    if scales:
        total = None if total is None else total * value
        scaled = constant(weight).double() * value.reshape(-1, 1, 1, 1)
        weight = add_constant(node, scaled.float(), hint_of(weight))
    else:
        total = value if total is None else total + value
    if total is not None:
        hint = local_hint(conv, "bias") if bias is None else hint_of(bias)
        bias = add_constant(node, total.float(), hint)
    new = insert(node, conv.target, x, weight, bias, *geometry)
    new.meta["source"] = conv.meta["source"]
    substitute(node, new)
