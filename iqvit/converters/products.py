"""`linear`, `conv2d`, `matmul`: bias and zero points fold into int32, scales into multipliers."""

from typing import Any

import numpy as np
from torch import fx

from iqvit.arith import multipliers
from iqvit.calibrated import Point
from iqvit.canonical import arguments
from iqvit.intgraph import Node
from iqvit.inttype import LIMITS, QParams
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.linear import Linear
from iqvit.ops.matmul import Matmul
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import RowQuantise

# A range whose lower side is at most 1/8 of the upper gives all levels to the upper.
ONE_SIDED = 8


def linear(c: Any, node: fx.Node) -> Node:
    """`x W^T + b`."""
    if node.name in c.calibrated.rows:
        return _row_linear(c, node)
    x = c.narrow(node.args[0])
    zeros = np.broadcast_to(c.qparams(x).zero_point, x.type.shape[-1:])
    weight = c.calibrated.weights[node.name]
    folded = (weight.q.astype(np.float64) * zeros).sum(axis=1)
    point = c.point(node)
    inputs, shift = _epilogue(c, node, folded, point)
    op = Linear(shift, int(point.qparams.zero_point), point.dtype, *point.limits)
    return c.emit(node, op, [x, *inputs], point.qparams)


def _row_linear(c: Any, node: fx.Node) -> Node:
    """A linear whose input rows get their own scale; they are rounded once for all its readers."""
    source = node.args[0]
    x, point, weight = c.value(source), c.point(node), c.calibrated.weights[node.name]
    sided = -x.type.lo * ONE_SIDED <= x.type.hi
    offset = x.type.lo if sided else 0
    op = RowQuantise(int(sided), offset)
    peak = c.shared(source, RowPeak(int(sided), offset), [x], "_peak")
    rows = c.shared(source, op, [x, peak], "_rows")
    step = weight.scale / float(point.qparams.scale)
    fixed = offset * weight.q.astype(np.float64).sum(axis=1) * step
    fixed += weight.bias / float(point.qparams.scale) + point.qparams.zero_point
    made, bias, multiplier = RowLinear.of(step / op.levels, fixed, point.dtype, point.limits)
    inputs = [
        c.constant(node, "weight", weight.q, QParams.of(weight.scale, axis=0)),
        c.constant(node, "bias", bias),
        c.constant(node, "multiplier", multiplier),
    ]
    return c.emit(node, made, [rows, peak, *inputs], point.qparams)


def conv2d(c: Any, node: fx.Node) -> Node:
    """A convolution; the image's mean and std are its input's zero points and scales."""
    args = arguments(node)
    x = c.narrow(args["x"])
    zeros = np.atleast_1d(c.qparams(x).zero_point)
    weight = c.calibrated.weights[node.name]
    groups, channels = args["groups"], x.type.shape[1]
    per_group = weight.q.astype(np.float64).reshape(
        groups, -1, channels // groups, *weight.q.shape[2:]
    )
    by_channel = np.broadcast_to(zeros, (channels,)).reshape(groups, 1, -1, 1, 1)
    folded = (per_group * by_channel).sum(axis=(2, 3, 4)).reshape(-1)
    point = c.point(node)
    inputs, shift = _epilogue(c, node, folded, point)
    pads = tuple(int(z) for z in np.floor(zeros + 0.5))
    op = Conv2d(
        _pair(args["stride"]),
        _pair(args["padding"]),
        _pair(args["dilation"]),
        groups,
        pads,
        shift,
        int(point.qparams.zero_point),
        point.dtype,
        *point.limits,
    )
    return c.emit(node, op, [x, *inputs], point.qparams)


def matmul(c: Any, node: fx.Node) -> Node:
    """The product of two activations, both symmetric int8."""
    a, b = (c.narrow(source) for source in node.args)
    point = c.point(node)
    for operand in (a, b):
        if np.any(c.qparams(operand).zero_point):
            raise c.fault(node, f"{operand.name} has a zero point, which a matmul cannot fold")
    op = Matmul.of(c.qparams(a), c.qparams(b), point.qparams, point.dtype)
    return c.emit(node, op, [a, b], point.qparams)


def _epilogue(c: Any, node: fx.Node, folded: np.ndarray, point: Point) -> tuple[list[Node], int]:
    """Weight, bias (the input's zero points folded in) and multiplier nodes, and the shift."""
    weight = c.calibrated.weights[node.name]
    bias = np.floor(weight.bias / weight.scale - folded + 0.5)
    bias = np.clip(bias, *LIMITS["int32"]).astype(np.int32)
    if point.qparams.per_channel:
        raise c.fault(node, "a product's output has one scale")
    m, shift = multipliers(weight.scale / float(point.qparams.scale))
    return [
        c.constant(node, "weight", weight.q, QParams.of(weight.scale, axis=0)),
        c.constant(node, "bias", bias, QParams.of(weight.scale, -folded, axis=0)),
        c.constant(node, "multiplier", m.astype(np.int32)),
    ], shift


def _pair(values: list[int]) -> tuple[int, int]:
    return (values[0], values[-1])
