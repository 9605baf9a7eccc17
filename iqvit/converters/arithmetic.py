"""`add` and `mul`, of two values or of a value and a constant."""

from typing import Any

from torch import fx

from iqvit.intgraph import Node
from iqvit.ops.add import Add
from iqvit.ops.multiply import Multiply


def add(c: Any, node: fx.Node) -> Node:
    """A sum at the output's scale with one rounding."""
    a, b = (c.operand(source, node, name) for source, name in zip(node.args, "ab", strict=True))
    point = c.point(node)
    op = Add.of(c.qparams(a), c.qparams(b), point.qparams, point.dtype, point.limits)
    return c.emit(node, op, [a, b], point.qparams)


def mul(c: Any, node: fx.Node) -> Node:
    """A product at the output's scale with one rounding."""
    a, b = (c.operand(source, node, name) for source, name in zip(node.args, "ab", strict=True))
    point = c.point(node)
    op = Multiply.of(c.qparams(a), c.qparams(b), point.qparams, point.dtype)
    return c.emit(node, op, [a, b], point.qparams)
