"""y = adaptive_avg_pool2d(x, 1)  ->  y = mean(x, [2, 3], True)"""

from collections.abc import Callable
from operator import getitem
from typing import Any

from torch import fx

from iqvit.canonical import aten, shape
from iqvit.passes.editing import (
    calls,
    non_negative,
    operands,
    packet_of,
    replace,
    schema_arguments,
)


def lower_reductions(module: fx.GraphModule) -> None:
    """Write means, maxima and adaptive pooling with sorted non-negative dimensions."""
    for node in calls(module, *RULES):
        RULES[packet_of(node)](node, schema_arguments(node))


def _mean(node: fx.Node, values: dict[str, Any]) -> None:
    if node.meta["val"].dtype == values["self"].meta["val"].dtype:
        dims, keepdim = _dims(values["self"], values.get("dim")), values.get("keepdim", False)
        replace(node, aten.mean.dim, values["self"], dims, keepdim)


def _amax(node: fx.Node, values: dict[str, Any]) -> None:
    x = values["self"]
    replace(node, aten.amax.default, x, _dims(x, values["dim"]), values["keepdim"])


def _max(node: fx.Node, values: dict[str, Any]) -> None:
    """max over one dimension is two operators: the values and their indices."""
    x = values["self"]
    if "other" in values:
        return
    if "dim" not in values:
        replace(node, aten.amax.default, x, _dims(x, None), False)
        return
    dims = _dims(x, [values["dim"]])
    for user in list(node.users):
        if user.target is getitem and operands(user)[1] == 0:
            replace(user, aten.amax.default, x, dims, values["keepdim"])
        elif user.target is getitem:
            replace(user, aten.argmax.default, x, dims[0], values["keepdim"])


def _adaptive(node: fx.Node, values: dict[str, Any]) -> None:
    """To size 1: a reduction. To a divisor of the size: pooling without overlap."""
    x = values["self"]
    rank = len(values["output_size"])
    sizes, out = shape(x)[-rank:], shape(node)[-rank:]
    dims = [len(shape(x)) - rank + i for i in range(rank)]
    if set(out) == {1}:
        replace(node, aten.mean.dim, x, dims, True)
    elif rank == 2 and all(size % count == 0 for size, count in zip(sizes, out, strict=True)):
        step = [size // count for size, count in zip(sizes, out, strict=True)]
        replace(node, aten.avg_pool2d.default, x, step, step, [0, 0], False, True, None)


def _dims(x: fx.Node, dims: Any) -> list[int]:
    rank = len(shape(x))
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(non_negative(dim, rank) for dim in ([dims] if isinstance(dims, int) else dims))


RULES: dict[Any, Callable[[fx.Node, dict[str, Any]], None]] = {
    aten.mean: _mean,
    aten.amax: _amax,
    aten.max: _max,
    aten.adaptive_avg_pool1d: _adaptive,
    aten.adaptive_avg_pool2d: _adaptive,
}
