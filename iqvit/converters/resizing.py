"""`upsample_nearest` and `upsample_bilinear`."""

from typing import Any

from torch import fx

from iqvit.canonical import arguments, op_of
from iqvit.intgraph import Node
from iqvit.ops.requantise import Requantise
from iqvit.ops.upsample_bilinear import UpsampleBilinear, scaled
from iqvit.ops.upsample_nearest import UpsampleNearest

# They read 32-bit values as they are.
TAKES_EXACT = frozenset({"argmax"})


def upsample_nearest(c: Any, node: fx.Node) -> Node:
    """The input's integers, repeated."""
    x = c.value(node.args[0])
    return c.emit(node, UpsampleNearest(*arguments(node)["size"]), [x], c.qparams(x))


def upsample_bilinear(c: Any, node: fx.Node) -> Node:
    """The exact numerators, or the group's form of them for readers that want fewer bits."""
    x = c.value(node.args[0])
    op = UpsampleBilinear(*arguments(node)["size"])
    qparams = scaled(c.qparams(x), op.denominator(x.type.shape))
    if all(user.op == "output" or op_of(user).name in TAKES_EXACT for user in node.users):
        return c.emit(node, op, [x], qparams)
    exact, point = c.emit(node, op, [x], qparams, "_exact"), c.point(node)
    narrowed = Requantise.between(qparams, point.qparams, point.dtype, point.limits)
    return c.emit(node, narrowed, [exact], point.qparams)
