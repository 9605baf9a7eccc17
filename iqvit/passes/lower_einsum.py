"""y = einsum("bhid,bhjd->bhij", a, b)  ->  y = matmul(a, permute(b, [0, 1, 3, 2]))"""

from math import prod

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import calls, insert, operands, replace


def lower_einsum(module: fx.GraphModule) -> None:
    """Write a sum of products of two tensors as permutes, one matmul and reshapes.

    Letters that repeat within an operand, an ellipsis, and letters that are summed in one operand
    alone stay for the checker.
    """
    for node in calls(module, aten.einsum):
        equation, factors = operands(node)[:2]
        terms, _, out = equation.replace(" ", "").partition("->")
        inputs = terms.split(",")
        if len(factors) == 2 and _is_product(inputs, out):
            _lower(node, list(factors), inputs, out)


def _is_product(inputs: list[str], out: str) -> bool:
    a, b = inputs
    if not out or "." in out or any(len(set(term)) != len(term) for term in (a, b, out)):
        return False
    return set(a) ^ set(b) <= set(out) <= set(a) | set(b)


def _lower(node: fx.Node, factors: list[fx.Node], inputs: list[str], out: str) -> None:
    (a, b), sizes = inputs, {}
    for term, factor in zip(inputs, factors, strict=True):
        sizes.update(zip(term, shape(factor), strict=True))
    batch = [letter for letter in out if letter in a and letter in b]
    rows = [letter for letter in out if letter not in b]
    columns = [letter for letter in out if letter not in a]
    inner = [letter for letter in a if letter in b and letter not in out]
    left = _arranged(node, factors[0], a, [batch, rows, inner], sizes)
    right = _arranged(node, factors[1], b, [batch, inner, columns], sizes)
    product = insert(node, aten.matmul.default, left, right)
    order = [*batch, *rows, *columns]
    spread = insert(node, aten.reshape.default, product, [sizes[letter] for letter in order])
    replace(node, aten.permute.default, spread, [order.index(letter) for letter in out])


def _arranged(
    node: fx.Node, x: fx.Node, term: str, groups: list[list[str]], sizes: dict[str, int]
) -> fx.Node:
    """The batch letters' dimensions, then one dimension for each of the two other groups."""
    batch, first, second = groups
    dims = [term.index(letter) for letter in [*batch, *first, *second]]
    permuted = insert(node, aten.permute.default, x, dims)
    merged = [prod(sizes[letter] for letter in group) for group in (first, second)]
    size = [*(sizes[letter] for letter in batch), *merged]
    return insert(node, aten.reshape.default, permuted, size)
