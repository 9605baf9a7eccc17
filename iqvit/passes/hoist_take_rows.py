"""y = take_rows(linear(x, w, b), i)  ->  y = linear(take_rows(x, i), w, b)"""

import torch
from torch import Tensor, fx

from iqvit.canonical import aten, constant, is_constant, shape, take_rows
from iqvit.passes.editing import (
    add_constant,
    calls,
    hint_of,
    insert,
    is_call,
    operands,
    packet_of,
    substitute,
)

# Of what they compute, every row depends on its own row alone; the number of operands with rows.
ROW_WISE = {
    aten.linear: 1, aten.layer_norm: 1, aten.relu: 1, aten.silu: 1, aten.sigmoid: 1, aten.tanh: 1,
    aten.clamp: 1, aten.gelu: 1, aten.add: 2, aten.mul: 2,
}  # fmt: skip
SENTINEL = 1e30  # no model computes with such numbers: they mean "never"
SATURATED = 32.0  # its sigmoid is 1 after any step of at most 15


def hoist_take_rows(module: fx.GraphModule) -> None:
    """Take rows before what is computed row by row: RT-DETR's box MLP then runs on its 300 queries
    instead of all tokens.

    Only through values that nothing else reads, and where fewer rows are left than there were.
    Constants with rows (anchors) are taken too.
    """
    pending = [node for node in calls(module, take_rows)]
    while pending:
        node = pending.pop()
        x, index = operands(node)
        if is_constant(x) or len(x.users) != 1 or packet_of(x) not in ROW_WISE:
            continue
        if shape(node)[1] >= shape(x)[1]:
            continue
        count = ROW_WISE[packet_of(x)]
        args = [
            _taken(node, arg, index, shape(x)) if place < count else arg
            for place, arg in enumerate(x.args)
        ]
        new = insert(node, x.target, *args)
        new.meta["source"] = x.meta["source"]
        substitute(node, new)
        node.graph.erase_node(x)  # or it would count as a reader of its operands
        pending += [arg for arg in args[:count] if is_call(arg, take_rows)]


def _taken(node: fx.Node, arg: fx.Node, index: fx.Node, size: tuple[int, ...]) -> fx.Node:
    """An operand's rows, or the operand itself where all rows share it."""
    if len(shape(arg)) < 2 or shape(arg)[-2] == 1:
        return arg
    if is_constant(arg):
        value = constant(arg).expand(1, size[1], shape(arg)[-1])
        arg = add_constant(node, _finite(value), hint_of(arg))
    return insert(node, take_rows, arg, index)


def _finite(value: Tensor) -> Tensor:
    """A constant without the sentinels that stand for a logit of infinity."""
    return torch.where(value.abs() > SENTINEL, value.sign() * SATURATED, value)
