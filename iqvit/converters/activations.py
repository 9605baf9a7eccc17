"""`gelu`, `silu`, `relu`, `sigmoid`, `tanh`: a table, an interpolated table or a published form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from iqvit.canonical import arguments
from iqvit.intgraph import Node
from iqvit.inttype import LIMITS
from iqvit.ops.igelu import IGelu
from iqvit.ops.interpolate import Interpolate
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.lookup import Lookup, make_table
from iqvit.ops.rectified import FUNCTIONS, Rectified
from iqvit.ops.requantise import Requantise
from iqvit.ops.shiftgelu import ShiftGelu

Published = type[IGelu] | type[ShiftGelu] | type[LambdaShiftGelu]
PUBLISHED: dict[str, Published] = {op.NAME: op for op in (IGelu, ShiftGelu, LambdaShiftGelu)}


def gelu(c: Any, node: fx.Node) -> Node:
    """GELU, exact or in the tanh form; the published approximations stand for both."""
    chosen = c.calibrated.approximations[node.name]
    if chosen in PUBLISHED:
        return _published(c, node, PUBLISHED[chosen])
    return _gated(c, node, "gelu_tanh" if node.args[1] == "tanh" else "gelu")


def silu(c: Any, node: fx.Node) -> Node:
    """x * sigmoid(x)."""
    return _gated(c, node, "silu")


def sigmoid(c: Any, node: fx.Node) -> Node:
    """A table: of all values of 8 bits, interpolated for 16."""
    return _smooth(c, node, torch.sigmoid)


def tanh(c: Any, node: fx.Node) -> Node:
    """A table: of all values of 8 bits, interpolated for 16."""
    return _smooth(c, node, torch.tanh)


def relu(c: Any, node: fx.Node) -> Node:
    """Saturation at the zero point; exact, in the scale of the input."""
    x = c.value(node.args[0])
    zero = int(c.qparams(x).zero_point)
    op = Requantise(1, 0, 0, x.type.dtype, zero, LIMITS[x.type.dtype][1])
    return c.emit(node, op, [x], c.qparams(x))


def clamp(c: Any, node: fx.Node) -> Node:
    """Saturation between two bounds; exact, in the scale of the input, but for their rounding."""
    args, x = arguments(node), c.value(node.args[0])
    qparams = c.qparams(x)
    least, most = LIMITS[x.type.dtype]
    lo, hi = (
        min(max(round(bound / float(qparams.scale) + float(qparams.zero_point)), least), most)
        for bound in (args["lo"], args["hi"])
    )
    return c.emit(node, Requantise(1, 0, 0, x.type.dtype, lo, hi), [x], qparams)


def _smooth(c: Any, node: fx.Node, function: Callable[[torch.Tensor], torch.Tensor]) -> Node:
    x, point = c.value(node.args[0]), c.point(node)
    if x.type.dtype != "int16":
        return _table(c, node, function)
    op, table = Interpolate.of(function, c.qparams(x), point.qparams, point.dtype, point.limits)
    return c.emit(node, op, [x, c.constant(node, "table", table)], point.qparams)


def _gated(c: Any, node: fx.Node, function: str) -> Node:
    x, point = c.value(node.args[0]), c.point(node)
    if x.type.dtype != "int16":
        return _table(c, node, FUNCTIONS[function][0])
    op, *values = Rectified.of(function, c.qparams(x), point.qparams, point.dtype)
    names = ("table", "multiplier", "zero_point")
    constants = [c.constant(node, name, value) for name, value in zip(names, values, strict=True)]
    return c.emit(node, op, [x, *constants], point.qparams)


def _published(c: Any, node: fx.Node, kind: Published) -> Node:
    read = c.value if kind is IGelu else c.narrow
    x, point = read(node.args[0]), c.point(node)
    if c.qparams(x).zero_point:
        raise c.fault(node, f"{kind.NAME} reads values with zero point 0")
    op, multiplier, zero = kind.of(c.qparams(x), point.qparams, point.dtype)
    constants = [
        c.constant(node, "multiplier", multiplier),
        c.constant(node, "zero_point", zero),
    ]
    return c.emit(node, op, [x, *constants], point.qparams)


def _table(c: Any, node: fx.Node, function: Callable[[torch.Tensor], torch.Tensor]) -> Node:
    x, point = c.narrow(node.args[0]), c.point(node)
    if x.type.dtype not in ("int8", "uint8"):
        raise c.fault(node, "a table reads 8 bits", "set bits = 8 for the node before it")
    if point.qparams.per_channel:
        raise c.fault(
            node, "a table has one output scale", 'set granularity = "tensor" for this node'
        )
    table = make_table(function, c.qparams(x), point.qparams, x.type.dtype, point.dtype)
    return c.emit(node, Lookup(), [x, c.constant(node, "table", table)], point.qparams)
