"""q, k, v = select(permute(reshape(linear(x, w, b))), 0..2)  ->  three linears, one for each

A packed projection gives q, k and v one integer scale; apart, each has its own.
"""

import math

from torch import fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import add_constant, calls, insert, is_call, operands, substitute


def split_projections(module: fx.GraphModule) -> None:
    """Take apart linears whose parts go their own ways behind reshapes and permutations."""
    for linear in calls(module, aten.linear):
        chain, selects = _parts(linear)
        if not selects:
            continue
        count = shape(chain[-1])[operands(selects[0])[1]]
        axis = _track(linear, chain, count)
        if axis == operands(selects[0])[1]:
            _split(linear, chain, selects, count)


def _parts(linear: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The layout operators behind a linear and the selects that end them; none if others read."""
    chain: list[fx.Node] = []
    node = linear
    while len(node.users) == 1 and is_call(next(iter(node.users)), aten.reshape, aten.permute):
        node = next(iter(node.users))
        chain.append(node)
    users = list(node.users)
    if not chain or len(users) < 2 or not all(is_call(user, aten.select) for user in users):
        return chain, []
    same = len({operands(user)[1] for user in users}) == 1
    constants = all(value is None or is_constant(value) for value in operands(linear)[1:])
    return chain, users if same and constants else []


def _track(linear: fx.Node, chain: list[fx.Node], count: int) -> int | None:
    """Where the axis that counts the parts ends up, None if the chain does not keep it whole."""
    before = shape(linear)
    axis: int | None = None
    for node in chain:
        if is_call(node, aten.permute):
            axis = None if axis is None else operands(node)[1].index(axis)
        else:
            lead = len(before) - 1 if axis is None else axis
            axis = _axis_at(shape(node), math.prod(before[:lead]), count)
        if axis is None:
            return None
        before = shape(node)
    return axis


def _axis_at(dims: tuple[int, ...], lead: int, count: int) -> int | None:
    """The axis of size `count` that has `lead` elements before it."""
    for axis, size in enumerate(dims):
        if size == count and math.prod(dims[:axis]) == lead:
            return axis
    return None


def _split(linear: fx.Node, chain: list[fx.Node], selects: list[fx.Node], count: int) -> None:
    x, weight, bias = operands(linear)
    rows = constant(weight).shape[0] // count
    for select in selects:
        index = operands(select)[2]
        part = slice(index * rows, (index + 1) * rows)
        names = [f"{weight.target}_{index}", "" if bias is None else f"{bias.target}_{index}"]
        w = add_constant(linear, constant(weight)[part].clone(), names[0])
        b = None if bias is None else add_constant(linear, constant(bias)[part].clone(), names[1])
        value = insert(select, aten.linear.default, x, w, b)
        value.meta["source"] = linear.meta["source"]
        substitute(select, _follow(value, linear, chain, select, count))


def _follow(
    value: fx.Node, linear: fx.Node, chain: list[fx.Node], select: fx.Node, count: int
) -> fx.Node:
    """The layout operators of the chain for one part: without the axis that counts them."""
    before, axis = shape(linear), None
    for node in chain:
        if is_call(node, aten.permute):
            dims = operands(node)[1]
            kept = [d - (d > axis) for d in dims if d != axis]
            axis = dims.index(axis)
            value = insert(select, aten.permute.default, value, kept)
        else:
            lead = len(before) - 1 if axis is None else axis
            axis = _axis_at(shape(node), math.prod(before[:lead]), count)
            dims = [size for a, size in enumerate(shape(node)) if a != axis]
            value = insert(select, aten.reshape.default, value, dims)
        before = shape(node)
    return value
