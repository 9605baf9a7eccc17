"""y = addmm(bias, x, weight_t)  ->  y = add(linear(x, weight, None), bias)"""

from typing import Any

from torch import fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import (
    add_constant,
    calls,
    hint_of,
    insert,
    is_call,
    operands,
    replace,
    schema_arguments,
    substitute,
)

PRODUCTS = (aten.mm, aten.bmm, aten.matmul)
SUMS = (aten.addmm, aten.baddbmm)


def lower_matmuls(module: fx.GraphModule) -> None:
    """Write products as linear (constant 2-d second operand) or matmul.

    The `add` and `mul` that addmm and baddbmm leave are put in order by lower_arithmetic, and
    fold_biases merges a constant one into the linear.
    """
    for node in calls(module, aten.linear):
        _lower_linear(node)
    for node in calls(module, *PRODUCTS, *SUMS):
        if is_call(node, *PRODUCTS):
            substitute(node, _product(node, *operands(node)))
        else:
            _lower_sum(node)


def _lower_linear(node: fx.Node) -> None:
    x, weight, bias = [*operands(node), None][:3]
    if is_constant(weight):
        replace(node, aten.linear.default, x, weight, bias)
        return
    product = insert(node, aten.matmul.default, x, _transposed(node, weight))
    if bias is not None:
        product = insert(node, aten.add.Tensor, product, bias)
    substitute(node, product)


def _transposed(node: fx.Node, x: fx.Node) -> fx.Node:
    dims = list(range(len(shape(x))))
    return insert(node, aten.permute.default, x, [*dims[:-2], *dims[-2:][::-1]])


def _product(node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
    if not is_constant(b) or len(shape(b)) != 2:
        return insert(node, aten.matmul.default, a, b)
    weight = add_constant(node, constant(b).t(), hint_of(b))
    return insert(node, aten.linear.default, a, weight, None)


def _lower_sum(node: fx.Node) -> None:
    values: dict[str, Any] = schema_arguments(node)
    a, b = list(values.values())[1:3]
    total = _product(node, a, b)
    if values["alpha"] != 1:
        total = insert(node, aten.mul.Tensor, total, values["alpha"])
    if values["beta"] == 0:
        substitute(node, total)
        return
    addend = values["self"]
    if values["beta"] != 1:
        addend = insert(node, aten.mul.Tensor, addend, values["beta"])
    substitute(node, insert(node, aten.add.Tensor, total, addend))
