"""y = div(sub(a, b), 2)  ->  y = mul(add(a, mul(b, -1.0)), 0.5)"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from iqvit.canonical import aten, constant, is_constant
from iqvit.passes.editing import (
    add_constant,
    calls,
    insert,
    local_hint,
    packet_of,
    schema_arguments,
    substitute,
)


def lower_arithmetic(module: fx.GraphModule) -> None:
    """Write sums, differences, negations, products and quotients by constants as add and mul.

    Python numbers become constants without dimensions; `alpha` and signs fold into constants; a
    constant is always the second operand. Integer arithmetic and quotients by computed values
    stay for the checker.
    """
    for node in calls(module, *RULES):
        if node.meta["val"].dtype != torch.float32:
            continue
        values = schema_arguments(node)
        packet = packet_of(node)
        new = RULES[packet](node, values)
        if new is not None:
            substitute(node, new)


def _add(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    return _sum(node, values["self"], _scaled(node, values["other"], values.get("alpha", 1)))


def _sub(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    return _sum(node, values["self"], _scaled(node, values["other"], -values.get("alpha", 1)))


def _rsub(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    return _sum(node, values["other"], _scaled(node, values["self"], -values.get("alpha", 1)))


def _neg(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    return _scaled(node, values["self"], -1)


def _mul(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    return _binary(node, aten.mul.Tensor, values["self"], values["other"])


def _square(node: fx.Node, values: dict[str, Any]) -> fx.Node | None:
    if values.get("exponent", 2) != 2:
        return None
    return _binary(node, aten.mul.Tensor, values["self"], values["self"])


def _div(node: fx.Node, values: dict[str, Any]) -> fx.Node | None:
    divisor = values["other"]
    if values.get("rounding_mode") is not None:
        return None
    if isinstance(divisor, fx.Node) and not is_constant(divisor):
        return None
    number = constant(divisor) if isinstance(divisor, fx.Node) else torch.tensor(divisor)
    inverse = add_constant(node, (1 / number.double()).float(), local_hint(node, "reciprocal"))
    return _binary(node, aten.mul.Tensor, values["self"], inverse)


RULES: dict[Any, Callable[[fx.Node, dict[str, Any]], fx.Node | None]] = {
    aten.add: _add,
    aten.sub: _sub,
    aten.subtract: _sub,
    aten.rsub: _rsub,
    aten.neg: _neg,
    aten.negative: _neg,
    aten.mul: _mul,
    aten.multiply: _mul,
    aten.square: _square,
    aten.pow: _square,
    aten.div: _div,
    aten.divide: _div,
    aten.true_divide: _div,
}


def _sum(node: fx.Node, a: Any, b: Any) -> fx.Node:
    return _binary(node, aten.add.Tensor, a, b)


def _scaled(node: fx.Node, value: Any, factor: float) -> Any:
    """`value * factor`, evaluated where the value is known."""
    if factor == 1:
        return value
    if not isinstance(value, fx.Node):
        return value * factor
    if is_constant(value):
        return add_constant(node, constant(value) * factor, local_hint(node, "scaled"))
    return _binary(node, aten.mul.Tensor, value, factor)


def _binary(node: fx.Node, target: Any, a: Any, b: Any) -> fx.Node:
    """A call on two tensors, the constant last and in float32."""
    first, second = _tensor(node, a), _tensor(node, b)
    if is_constant(first) and not is_constant(second):
        first, second = second, first
    return insert(node, target, first, second)


def _tensor(node: fx.Node, value: Any) -> fx.Node:
    if not isinstance(value, fx.Node):
        return add_constant(node, torch.tensor(float(value)), local_hint(node, "number"))
    if is_constant(value) and constant(value).dtype != torch.float32:
        return add_constant(node, constant(value).float(), local_hint(node, "number"))
    return value
