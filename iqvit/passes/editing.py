"""What every pass needs to edit a graph: find calls, read their arguments, replace them."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from iqvit.canonical import constant, is_constant

aten = torch.ops.aten


def operands(node: fx.Node) -> list[Any]:
    """The positional arguments of a call; their types are what its operator says."""
    return list(node.args)


def packet_of(node: fx.Node) -> Any:
    """The operator of a call without its overload: `aten.add` for `aten.add.Tensor`."""
    return getattr(node.target, "overloadpacket", node.target)


def is_call(value: Any, *packets: Any) -> bool:
    """Whether a value is a call of one of the operators, in any overload."""
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return False
    return packet_of(value) in packets


def schema_of(node: fx.Node) -> Any:
    """The schema of an ATen call."""
    return getattr(node.target, "_schema")  # noqa: B009


def calls(module: fx.GraphModule, *packets: Any) -> list[fx.Node]:
    """The calls of the operators, in any overload, in topological order."""
    return [node for node in module.graph.nodes if is_call(node, *packets)]


def schema_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by its schema name and in its order, defaults filled in."""
    values = {}
    for index, argument in enumerate(schema_of(node).arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value
    return values


def insert(anchor: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new call before `anchor`, with `anchor`'s source and its own inferred type."""
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.call_function(target, args)
    value = target(*map_arg(args, lambda argument: argument.meta["val"]))
    node.meta = {"source": anchor.meta["source"], "val": value}
    return node


def replace(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """Put a new call in the place of `node`."""
    new = insert(node, target, *args)
    substitute(node, new)
    return new


def substitute(node: fx.Node, new: fx.Node) -> None:
    """Let every user of `node` use `new`, and erase `node`."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def add_constant(anchor: fx.Node, tensor: Tensor, hint: str) -> fx.Node:
    """A constant before `anchor`; `hint` is what the last pass makes its name from."""
    module: Any = anchor.graph.owning_module
    count = len(dict(module.named_buffers(recurse=False)))
    name = f"_constant_{count}"
    module.register_buffer(name, tensor.detach().clone().contiguous())
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.create_node("get_attr", name, name=name)
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    node.meta = {"source": anchor.meta["source"], "val": value, "hint": hint}
    return node


def hint_of(node: fx.Node) -> str:
    """The readable name of a constant: its path in the model, or the hint it was made with."""
    return node.meta.get("hint") or node.meta["source"].module_path or str(node.target)


def local_hint(anchor: fx.Node, name: str) -> str:
    """A hint for a constant that belongs to `anchor`'s module."""
    path = anchor.meta["source"].module_path
    return f"{path}.{name}" if path else name


def scalar_of(value: Any) -> float | None:
    """The number that a Python scalar or a constant of one element stands for, or None."""
    if isinstance(value, (int, float)):
        return float(value)
    if is_constant(value) and constant(value).numel() == 1:
        return float(constant(value))
    return None


def non_negative(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim
