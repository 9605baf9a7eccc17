"""`topk` and `argmax`, where equal integers go to the lowest index; arithmetic of indices."""

from typing import Any

from torch import fx

from iqvit.canonical import arguments, op_of
from iqvit.intgraph import Node
from iqvit.inttype import QParams
from iqvit.ops.argmax import Argmax
from iqvit.ops.floor_divide import FloorDivide
from iqvit.ops.gather import Gather
from iqvit.ops.remainder import Remainder
from iqvit.ops.topk import TopK

INDEX = QParams.of(1.0)  # an index stands for itself


def topk(c: Any, node: fx.Node) -> Node:
    """The indices; `getitem` takes the values from them."""
    args, x = arguments(node), c.value(node.args[0])
    if not args["largest"] or args["dim"] != len(x.type.shape) - 1:
        raise c.fault(node, "topk of the smallest, or of another axis than the last")
    return c.emit(node, TopK(args["k"]), [x], INDEX)


def getitem(c: Any, node: fx.Node) -> Node:
    """0: the values, gathered by index; 1: the indices."""
    args = arguments(node)
    pair, indices = args["pair"], c.value(args["pair"])
    if args["index"] == 1:
        return indices
    x = c.value(pair.args[0])
    return c.emit(node, Gather(), [x, indices], c.qparams(x))


def floor_divide(c: Any, node: fx.Node) -> Node:
    """The query of a pair of query and class."""
    args = arguments(node)
    return c.emit(node, FloorDivide(args["divisor"]), [c.value(args["x"])], INDEX)


def remainder(c: Any, node: fx.Node) -> Node:
    """The class of a pair of query and class."""
    args = arguments(node)
    return c.emit(node, Remainder(args["divisor"]), [c.value(args["x"])], INDEX)


def _outward(node: fx.Node) -> bool:
    """Whether a value goes to outputs only, perhaps in another layout."""
    return all(
        user.op == "output"
        or (op_of(user).name in ("reshape", "permute", "slice", "select") and _outward(user))
        for user in node.users
    )


def argmax(c: Any, node: fx.Node) -> Node:
    """The index of the largest: a class map in uint8 where only the output takes it."""
    args, x = arguments(node), c.value(node.args[0])
    small = _outward(node) and x.type.shape[args["dim"]] <= 256
    op = Argmax(args["dim"], int(args["keepdim"]), "uint8" if small else "int32")
    return c.emit(node, op, [x], INDEX)
