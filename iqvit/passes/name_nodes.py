"""%linear_4 of module blocks.3.mlp.fc1  ->  %blocks_3_mlp_fc1_linear"""

import re
from operator import getitem
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from iqvit.canonical import OPS, constant, output_nodes
from iqvit.passes.editing import hint_of, operands, packet_of


def name_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with readable names: module path and operator, numbered where they repeat.

    Constants come first, named after their path in the model. Only used constants are kept.
    """
    root, graph = nn.Module(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    nodes = list(module.graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            values[node] = graph.placeholder(node.name)
    for node in nodes:
        if node.op == "get_attr" and node.users:
            name = _free_name(root, hint_of(node))
            root.register_buffer(name, constant(node))
            values[node] = graph.create_node("get_attr", name, name=name)
    for node in nodes:
        if node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = graph.call_function(node.target, args, kwargs, name=_name(node))
    results = tuple(values[node] for node in output_nodes(module.graph))
    output = graph.output(results[0] if len(results) == 1 else results)
    output.meta = dict(module.graph.output_node().meta)
    for old, new in values.items():
        new.meta = {key: old.meta[key] for key in ("source", "val") if key in old.meta}
    graph.lint()
    return fx.GraphModule(root, graph)


def _name(node: fx.Node) -> str:
    target: Any = node.target
    operator = OPS[target].name if target in OPS else packet_of(node).__name__
    if target is getitem:
        operator = {0: "values", 1: "indices"}.get(operands(node)[1], operator)
    return _clean(f"{node.meta['source'].module_path}.{operator}")


def _clean(name: str) -> str:
    """An identifier: the children of nn.Sequential begin with a digit."""
    name = re.sub(r"\W+", "_", name).strip("_")
    return f"_{name}" if name[0].isdigit() else name


def _free_name(root: nn.Module, hint: str) -> str:
    base = _clean(hint)
    name, count = base, 0
    while hasattr(root, name):
        count += 1
        name = f"{base}_{count}"
    return name
