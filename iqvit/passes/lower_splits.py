"""a, b = chunk(x, 2, -1)  ->  a = slice(x, 2, 0, 96, 1); b = slice(x, 2, 96, 192, 1)"""

from operator import getitem

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import (
    calls,
    non_negative,
    operands,
    packet_of,
    replace,
    schema_arguments,
    substitute,
)

SPLITS = (aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, aten.unsafe_chunk)


def lower_splits(module: fx.GraphModule) -> None:
    """Write the pieces of a split as slices, those of unbind as selects; normalise both."""
    for node in calls(module, *SPLITS, aten.unbind):
        _lower_pieces(node)
    for node in calls(module, aten.slice, aten.narrow):
        _lower_slice(node)
    for node in calls(module, aten.select):
        x, dim, index = operands(node)
        dim = non_negative(dim, len(shape(x)))
        replace(node, aten.select.int, x, dim, non_negative(index, shape(x)[dim]))


def _lower_pieces(node: fx.Node) -> None:
    x = operands(node)[0]
    dim = non_negative(schema_arguments(node)["dim"], len(shape(x)))
    starts = [0]
    for piece in node.meta["val"]:
        # A piece of unbind has lost the dimension; its size there is 1.
        starts.append(starts[-1] + (piece.shape[dim] if piece.dim() == len(shape(x)) else 1))
    for user in list(node.users):
        if user.target is not getitem:
            continue
        index = non_negative(operands(user)[1], len(starts) - 1)
        if packet_of(node) is aten.unbind:
            replace(user, aten.select.int, x, dim, index)
        else:
            replace(user, aten.slice.Tensor, x, dim, starts[index], starts[index + 1], 1)


def _lower_slice(node: fx.Node) -> None:
    values = schema_arguments(node)
    x, dim = operands(node)[0], non_negative(values["dim"], len(shape(node)))
    size = shape(x)[dim]
    if "length" in values:
        start, end, step = values["start"], values["start"] + values["length"], 1
    else:
        start, end, step = slice(values["start"], values["end"], values["step"]).indices(size)
    if isinstance(start, int) and shape(node) == shape(x):
        substitute(node, x)
    elif isinstance(start, int):
        replace(node, aten.slice.Tensor, x, dim, non_negative(start, size), end, step)
