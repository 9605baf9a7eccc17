"""y = conv2d(cat(a, b), w, bias)  ->  y = add(conv2d(a, w[:, :n], bias), conv2d(b, w[:, n:]))

Joined, the branches share one integer scale; apart, each has its own.
"""

from torch import fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import add_constant, calls, hint_of, insert, is_call, operands, substitute


def split_branches(module: fx.GraphModule) -> None:
    """Take apart the convolutions that read channels joined of several values, where nothing but
    such convolutions reads them joined."""
    for joined in calls(module, aten.cat):
        branches, dim = operands(joined)
        readers = list(joined.users)
        if dim != 1 or any(map(is_constant, branches)) or not all(map(_is_plain, readers)):
            continue
        for conv in readers:
            substitute(conv, _sum(conv, branches))


def _is_plain(node: fx.Node) -> bool:
    return is_call(node, aten.conv2d) and operands(node)[-1] == 1 and is_constant(operands(node)[1])


def _sum(conv: fx.Node, branches: list[fx.Node]) -> fx.Node:
    """The convolutions of the branches, added up; the first one has the bias."""
    _, weight, bias, *geometry = operands(conv)
    total: fx.Node | None = None
    begin = 0
    for branch in branches:
        end = begin + shape(branch)[1]
        part = add_constant(conv, constant(weight)[:, begin:end], hint_of(weight))
        offset = bias if total is None else None
        term = insert(conv, aten.conv2d.default, branch, part, offset, *geometry)
        total = term if total is None else insert(conv, aten.add.Tensor, total, term)
        begin = end
    if total is None:
        raise RuntimeError("nothing is joined")
    return total
