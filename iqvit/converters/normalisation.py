"""`layer_norm`: exact square root, or I-ViT's."""

from typing import Any

import numpy as np
from torch import fx

from iqvit.canonical import arguments, constant
from iqvit.intgraph import Node
from iqvit.ops.ilayernorm import ILayerNorm
from iqvit.ops.layernorm import LayerNorm


def layer_norm(c: Any, node: fx.Node) -> Node:
    """LayerNorm over the last axis; scales per channel of its output fold into gain and bias."""
    args = arguments(node)
    x = c.value(args["x"])
    count = x.type.shape[-1]
    gain = np.ones(count) if args["w"] is None else constant(args["w"]).double().numpy()
    bias = np.zeros(count) if args["b"] is None else constant(args["b"]).double().numpy()
    point = c.point(node)
    if c.calibrated.approximations[node.name] == "ilayernorm":
        op, *values = ILayerNorm.of(count, gain, bias, point.qparams, point.dtype)
        names = ("bias", "multiplier", "zero_point")
    else:
        op, *values = LayerNorm.of(
            x.type, c.qparams(x), gain, bias, args["eps"], point.qparams, point.dtype
        )
        names = ("gain", "bias")
    constants = [c.constant(node, name, value) for name, value in zip(names, values, strict=True)]
    return c.emit(node, op, [x, *constants], point.qparams)
