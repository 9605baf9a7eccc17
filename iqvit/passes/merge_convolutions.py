"""y = add(conv2d(x, w3, b3), conv2d(x, w1, b1))  ->  y = conv2d(x, w3 + pad(w1), b3 + b1)"""

from typing import Any

from torch import Tensor, fx
from torch.nn import functional

from iqvit.canonical import aten, constant
from iqvit.passes.editing import add_constant, calls, hint_of, insert, is_call, operands, substitute


def merge_convolutions(module: fx.GraphModule) -> None:
    """Merge the sum of two convolutions of one value (RepVGG, arXiv 2101.03697, section 3.3).

    Their strides, dilations and groups must agree, and kernel and padding differ alike, so that the
    smaller kernel lies in the middle of the larger. Neither result may have other readers.
    """
    for node in calls(module, aten.add):
        pair = operands(node)[:2]
        if not all(is_call(conv, aten.conv2d) and len(conv.users) == 1 for conv in pair):
            continue
        if pair[0] is pair[1] or operands(pair[0])[0] is not operands(pair[1])[0]:
            continue
        large, small = sorted(pair, key=_sides, reverse=True)
        margins = _margins(large, small)
        if margins is not None:
            _merge(node, large, small, margins)


def _sides(conv: fx.Node) -> tuple[int, ...]:
    return tuple(constant(operands(conv)[1]).shape[2:])


def _margins(large: fx.Node, small: fx.Node) -> list[int] | None:
    """Rows and columns of zeros around the smaller kernel; None where they do not fit."""
    _, _, _, stride, padding, dilation, groups = operands(large)
    _, _, _, stride_s, padding_s, dilation_s, groups_s = operands(small)
    margins = [a - b for a, b in zip(padding, padding_s, strict=True)]
    grown = [b + 2 * m for b, m in zip(_sides(small), margins, strict=True)]
    alike = stride == stride_s and groups == groups_s and set(dilation) == set(dilation_s) == {1}
    return margins if alike and min(margins) >= 0 and grown == list(_sides(large)) else None


def _merge(node: fx.Node, large: fx.Node, small: fx.Node, margins: list[int]) -> None:
    x, weight, bias, *geometry = operands(large)
    rows, columns = margins
    grown = functional.pad(constant(operands(small)[1]).double(), [columns] * 2 + [rows] * 2)
    total = _constant(node, (constant(weight).double() + grown).float(), weight)
    biases = [b for b in (bias, operands(small)[2]) if b is not None]
    summed: Any = None
    if biases:
        value = sum((constant(b).double() for b in biases[1:]), constant(biases[0]).double())
        summed = _constant(node, value.float(), biases[0])
    new = insert(node, aten.conv2d.default, x, total, summed, *geometry)
    new.meta["source"] = large.meta["source"]
    substitute(node, new)


def _constant(node: fx.Node, value: Tensor, like: fx.Node) -> fx.Node:
    return add_constant(node, value, hint_of(like))
