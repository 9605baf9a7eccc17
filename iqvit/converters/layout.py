"""Operators that only move values: their output has the integers of their input."""

from typing import Any

from torch import fx

from iqvit.canonical import arguments, is_constant
from iqvit.intgraph import Node
from iqvit.inttype import QParams
from iqvit.ops.concat import Concat
from iqvit.ops.permute import Permute
from iqvit.ops.reshape import Reshape
from iqvit.ops.slice import Slice

INDEX = QParams.of(1.0)  # a position stands for itself


def cat(c: Any, node: fx.Node) -> Node:
    """All parts in the form of the whole; constants (class tokens) are rounded to it."""
    args = arguments(node)
    if not node.meta["val"].is_floating_point():
        return c.emit(node, Concat(args["dim"]), [c.value(s) for s in args["tensors"]], INDEX)
    point = c.point(node)
    parts = [
        c.quantised(node, f"part{index}", source, point)
        if is_constant(source)
        else c.requantised(c.value(source), point, f"{node.name}_part{index}")
        for index, source in enumerate(args["tensors"])
    ]
    return c.emit(node, Concat(args["dim"]), parts, point.qparams)


def reshape(c: Any, node: fx.Node) -> Node:
    """Row-major order is kept; a scale per channel only where the last axis is."""
    args, x = arguments(node), c.value(node.args[0])
    shape = tuple(args["shape"])
    if c.qparams(x).per_channel and shape[-1] != x.type.shape[-1]:
        raise c.fault(node, "a scale per channel does not survive this reshape")
    return c.emit(node, Reshape(shape), [x], c.qparams(x))


def permute(c: Any, node: fx.Node) -> Node:
    """Axes in another order."""
    x, dims = c.value(node.args[0]), tuple(arguments(node)["dims"])
    if c.qparams(x).per_channel and dims[-1] != len(dims) - 1:
        raise c.fault(node, "a scale per channel does not survive this permutation")
    return c.emit(node, Permute(dims), [x], c.qparams(x))


def slice_(c: Any, node: fx.Node) -> Node:
    """Part of an axis."""
    args, x = arguments(node), c.value(node.args[0])
    op = Slice(
        args["dim"], args["start"], min(args["end"], x.type.shape[args["dim"]]), args["step"]
    )
    return c.emit(node, op, [x], c.qparams(x))


def select(c: Any, node: fx.Node) -> Node:
    """One index of an axis: a slice without that axis."""
    args, x = arguments(node), c.value(node.args[0])
    axis, index = args["dim"], args["index"]
    part = c.emit(node, Slice(axis, index, index + 1, 1), [x], c.qparams(x), "_slice")
    shape = (*x.type.shape[:axis], *x.type.shape[axis + 1 :])
    return c.emit(node, Reshape(shape), [part], c.qparams(x))
