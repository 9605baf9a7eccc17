"""y = batch_norm(conv2d(x, w, b), ...)  ->  y = conv2d(x, w', b')"""

from typing import Any

import torch
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
    replace,
    schema_arguments,
    substitute,
)


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Fold batch normalisation with running statistics into the convolution or linear before it.

    Where there is none, or it has other users, it becomes mul and add with constants. Computed in
    float64. Batch normalisation by the statistics of the batch stays for the checker.
    """
    for node in calls(module, aten.batch_norm):
        values = schema_arguments(node)
        if values["training"] or not is_constant(values["running_mean"]):
            continue
        gain, offset = _affine(values)
        producer = operands(node)[0]
        if _can_absorb(producer, node):
            _absorb(node, producer, gain, offset)
            continue
        size = [-1, *[1] * (len(shape(node)) - 2)]
        gain_node = add_constant(node, gain.view(size).float(), local_hint(node, "gain"))
        offset_node = add_constant(node, offset.view(size).float(), local_hint(node, "offset"))
        scaled = insert(node, aten.mul.Tensor, producer, gain_node)
        replace(node, aten.add.Tensor, scaled, offset_node)


def _affine(values: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Gain and offset per channel."""
    mean = constant(values["running_mean"]).double()
    gain = torch.rsqrt(constant(values["running_var"]).double() + values["eps"])
    if values["weight"] is not None:
        gain = gain * constant(values["weight"]).double()
    offset = -mean * gain
    if values["bias"] is not None:
        offset = offset + constant(values["bias"]).double()
    return gain, offset


def _can_absorb(producer: Any, node: fx.Node) -> bool:
    if not is_call(producer, aten.conv2d, aten.linear) or len(producer.users) != 1:
        return False
    # Channels of batch_norm are dimension 1: those of a linear's output only where it is 2-d.
    channels_second = is_call(producer, aten.conv2d) or len(shape(node)) == 2
    return channels_second and is_constant(operands(producer)[1])


def _absorb(node: fx.Node, producer: fx.Node, gain: Tensor, offset: Tensor) -> None:
    x, weight, bias, *rest = [*operands(producer), *[None] * (3 - len(operands(producer)))]
    value = constant(weight)
    folded = value.double() * gain.view(-1, *[1] * (value.dim() - 1))
    total = offset if bias is None else offset + constant(bias).double() * gain
    new_weight = add_constant(node, folded.float(), hint_of(weight))
    name = local_hint(producer, "bias") if bias is None else hint_of(bias)
    new_bias = add_constant(node, total.float(), name)
    new = insert(node, producer.target, x, new_weight, new_bias, *rest)
    new.meta["source"] = producer.meta["source"]
    substitute(node, new)
