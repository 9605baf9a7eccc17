"""`mean`, `amax` and the windowed poolings."""

from typing import Any

from torch import fx

from iqvit.canonical import arguments
from iqvit.intgraph import Node
from iqvit.ops.amax import Amax
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.max_pool import MaxPool
from iqvit.ops.mean import Mean


def mean(c: Any, node: fx.Node) -> Node:
    """The average over axes, one rounding."""
    args, x, point = arguments(node), c.value(node.args[0]), c.point(node)
    op = Mean.of(
        x.type.shape, tuple(args["dims"]), args["keepdim"], c.qparams(x), point.qparams, point.dtype
    )
    return c.emit(node, op, [x], point.qparams)


def amax(c: Any, node: fx.Node) -> Node:
    """The maximum over axes."""
    args, x = arguments(node), c.value(node.args[0])
    return c.emit(node, Amax(tuple(args["dims"]), int(args["keepdim"])), [x], c.qparams(x))


def max_pool2d(c: Any, node: fx.Node) -> Node:
    """Windows without dilation, `ceil_mode` off."""
    args, x = arguments(node), c.value(node.args[0])
    if args["ceil_mode"] or set(args["dilation"]) != {1}:
        raise c.fault(node, "max pooling with dilation or ceil_mode")
    kernel = _pair(args["kernel"])
    op = MaxPool(
        kernel, _pair(args["stride"]) if args["stride"] else kernel, _pair(args["padding"])
    )
    return c.emit(node, op, [x], c.qparams(x))


def avg_pool2d(c: Any, node: fx.Node) -> Node:
    """Windows averaged with one rounding."""
    args, x, point = arguments(node), c.value(node.args[0]), c.point(node)
    if args["ceil_mode"] or args["divisor_override"] is not None:
        raise c.fault(node, "average pooling with ceil_mode or divisor_override")
    kernel = _pair(args["kernel"])
    op = AvgPool.of(
        kernel,
        _pair(args["stride"]) if args["stride"] else kernel,
        _pair(args["padding"]),
        args["count_include_pad"],
        c.qparams(x),
        point.qparams,
        point.dtype,
    )
    return c.emit(node, op, [x], point.qparams)


def _pair(values: list[int]) -> tuple[int, int]:
    return (values[0], values[-1])
