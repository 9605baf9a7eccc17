"""What a captured graph does not need: run-time assertions, and outputs that nobody asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from iqvit.errors import CaptureError

aten = torch.ops.aten
ASSERTIONS = (
    aten._assert_scalar,
    aten._assert_async,
    aten._assert_tensor_metadata,
    aten.sym_constrain_range_for_size,
)


def drop_assertions(graph: fx.Graph) -> None:
    """Remove assertions, and then every call that nothing reads: export has run them once.

    A check of a tensor's value (`torch._check(mask.all())`) would otherwise bring a Python number
    into the graph.
    """
    for node in reversed(list(graph.nodes)):
        asserts = getattr(node.target, "overloadpacket", None) in ASSERTIONS
        if asserts or (node.op == "call_function" and not node.users and not _writes(node)):
            graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    return getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def keep_outputs(
    graph: fx.Graph, names: tuple[str, ...], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """Let `graph` return only the outputs `wanted`, in that order (None: all); returns their names.

    Raises `CaptureError` for a name that the model does not return.
    """
    if wanted is None:
        return names
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        what = f"no output {unknown[0]!r}" if unknown else "no outputs asked for"
        raise CaptureError(f"{what}: the model returns {', '.join(names)}")
    output = graph.output_node()
    returned: Any = output.args[0]
    values = dict(zip(names, returned, strict=True))
    output.args = (tuple(values[name] for name in wanted),)
    return tuple(wanted)
