"""`layer_norm`: exact square root, or I-ViT's; `l2_normalize`."""

from typing import Any

import numpy as np
from torch import fx

from iqvit.canonical import arguments, constant
from iqvit.intgraph import Node
from iqvit.ops.ilayernorm import ILayerNorm
from iqvit.ops.l2_normalize import L2Normalize
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


def l2_normalize(c: Any, node: fx.Node) -> Node:
    """Rows of the last axis over their length."""
    x, point = c.value(node.args[0]), c.point(node)
    if np.any(c.qparams(x).zero_point) or c.qparams(x).per_channel:
        raise c.fault(node, "an L2 norm reads values with one scale and zero point 0")
    op = L2Normalize.of(float(node.args[1]), c.qparams(x), point.qparams, point.dtype)  # type: ignore[arg-type]
    return c.emit(node, op, [x], point.qparams)
