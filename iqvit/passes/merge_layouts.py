"""y = reshape(reshape(x, [1, 4, 6]), [1, 24])  ->  y = reshape(x, [1, 24])"""

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import calls, insert, is_call, operands, replace, substitute


def merge_layouts(module: fx.GraphModule) -> None:
    """Merge consecutive reshapes and permutes; remove those that change nothing.

    A permute that moves dimensions of size 1 only keeps the order of elements: a reshape.
    """
    for node in calls(module, aten.reshape, aten.permute):
        merged = _merge_permute(node) if is_call(node, aten.permute) else node
        if is_call(merged, aten.reshape):
            _merge_reshape(merged)


def _merge_permute(node: fx.Node) -> fx.Node:
    x, dims = operands(node)
    if is_call(x, aten.permute):
        inner, inner_dims = operands(x)
        node = replace(node, aten.permute.default, inner, [inner_dims[dim] for dim in dims])
        x, dims = operands(node)
    moved = [dim for dim in dims if shape(x)[dim] != 1]
    if moved == sorted(moved):
        return replace(node, aten.reshape.default, x, list(shape(node)))
    return node


def _merge_reshape(node: fx.Node) -> None:
    x = operands(node)[0]
    if is_call(x, aten.reshape):
        x = operands(x)[0]
    if shape(x) == shape(node):
        substitute(node, x)
    elif x is not operands(node)[0]:
        substitute(node, insert(node, aten.reshape.default, x, list(shape(node))))
