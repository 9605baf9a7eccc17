"""q = i // 3; c = i - 3 * q  ->  q = floor_divide(i, 3); c = remainder(i, 3), of indices"""

from typing import Any

from torch import fx

from iqvit.canonical import aten, floor_divide, remainder
from iqvit.passes.editing import calls, is_call, operands, replace, scalar_of, schema_arguments

# Indices are not negative: rounding down is rounding to zero.
WHOLE = ("floor", "trunc")


def lower_index_arithmetic(module: fx.GraphModule) -> None:
    """Write quotients and remainders of indices by a constant in one way each.

    Detectors find the query and the class of a flattened pair so.
    """
    for node in calls(module, aten.floor_divide, aten.div):
        whole = is_call(node, aten.floor_divide)
        if whole or schema_arguments(node).get("rounding_mode") in WHOLE:
            _lower(node, floor_divide)
    for node in calls(module, aten.remainder, aten.fmod):
        _lower(node, remainder)
    for node in calls(module, aten.sub):
        rest = _rest(node)
        if rest is not None:
            replace(node, remainder, *rest)


def _lower(node: fx.Node, target: Any) -> None:
    x, divisor = operands(node)[0], _divisor(operands(node)[1])
    if divisor is not None and _is_index(x) and _is_index(node):
        replace(node, target, x, divisor)


def _rest(node: fx.Node) -> tuple[fx.Node, int] | None:
    """i and n of `i - (i // n) * n`."""
    i, product = operands(node)[:2]
    if node.kwargs or not is_call(product, aten.mul):
        return None
    a, b = operands(product)
    for quotient, factor in ((a, b), (b, a)):
        if is_call(quotient, floor_divide) and quotient.args == (i, _divisor(factor)):
            return i, operands(quotient)[1]
    return None


def _divisor(value: Any) -> int | None:
    number = scalar_of(value)
    return int(number) if number is not None and number >= 1 and number % 1 == 0 else None


def _is_index(value: Any) -> bool:
    return isinstance(value, fx.Node) and not value.meta["val"].is_floating_point()
