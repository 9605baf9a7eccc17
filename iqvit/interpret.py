"""The bit-exact interpreter: every node's `Op.run`, on PyTorch integer tensors."""

from collections.abc import Callable, Mapping

import torch

from iqvit.errors import DataError
from iqvit.intgraph import IntGraph
from iqvit.ops.constant import Constant
from iqvit.ops.input import Input

Functions = Mapping[str, Callable[..., torch.Tensor]]
"""What computes nodes in place of their operators, by node name: from the same integers, others."""


def run(
    graph: IntGraph, x: torch.Tensor, trace: bool = False, instead: Functions | None = None
) -> dict[str, torch.Tensor]:
    """Evaluate the program on a batch of images.

    x: uint8 `[B, C, H, W]`. Returns the named integer outputs with B in front; with `trace`, every
    computed value under its node name as well. Scales are in `graph[graph.outputs[name]].qparams`.
    instead: functions for nodes that shall be computed otherwise, as in mixed precision. Raises
    `DataError` for another dtype or shape.
    """
    check_images(x, graph.input.type.shape)
    images = [evaluate(graph, x[i : i + 1], trace, instead) for i in range(len(x))]
    return {name: torch.cat([values[name] for values in images]) for name in images[0]}


def check_images(x: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise `DataError` unless x is a non-empty uint8 batch of images of `shape`."""
    if x.dtype != torch.uint8:
        raise DataError(f"images are uint8, these are {x.dtype}")
    if tuple(x.shape[1:]) != shape[1:] or len(x) == 0:
        wanted = ", ".join(map(str, shape[1:]))
        raise DataError(f"images are [batch, {wanted}], these are {list(x.shape)}")


def evaluate(
    graph: IntGraph, image: torch.Tensor, trace: bool = False, instead: Functions | None = None
) -> dict[str, torch.Tensor]:
    """`run` for a single image `[1, C, H, W]`; values are freed after their last use."""
    functions = instead or {}
    constants = _constants(graph, image.device)
    values: dict[str, torch.Tensor] = {}
    results: dict[str, torch.Tensor] = {}
    last = _last_uses(graph)
    for index, node in enumerate(graph):
        if isinstance(node.op, Constant):
            continue
        if isinstance(node.op, Input):
            value = image
        else:
            value = functions.get(node.name, node.op.run)(
                *(constants[n] if n in constants else values[n] for n in node.inputs)
            )
        values[node.name] = value
        if trace:
            results[node.name] = value
        for name in last.get(index, ()):
            values.pop(name, None)
    for name, source in graph.outputs.items():
        results[name] = constants[source] if source in constants else values[source]
    return results


def evaluate_batch(
    graph: IntGraph, images: torch.Tensor, trace: bool = False, chunk: int | None = None
) -> dict[str, torch.Tensor]:
    """`evaluate` for uint8 `[B, C, H, W]`: every value `[1, ...]` with B in front, the same bits.

    chunk: how many images at a time (None: all), where memory or caches are small.
    """

    def single(image: torch.Tensor) -> dict[str, torch.Tensor]:
        return evaluate(graph, image, trace)

    found: dict[str, torch.Tensor] = torch.vmap(single, chunk_size=chunk)(images[:, None])
    return found


def _constants(graph: IntGraph, device: torch.device) -> dict[str, torch.Tensor]:
    """Constants on a device, made once a graph (those of numpy are read-only)."""
    devices: dict[torch.device, dict[str, torch.Tensor]] = graph.__dict__.setdefault("_tensors", {})
    if device not in devices:
        devices[device] = {
            name: torch.from_numpy(value.copy()).to(device)
            for name, value in graph.constants.items()
        }
    return devices[device]


def _last_uses(graph: IntGraph) -> dict[int, list[str]]:
    cached: dict[int, list[str]] | None = graph.__dict__.get("_last")
    if cached is not None:
        return cached
    final = {name: index for index, node in enumerate(graph) for name in node.inputs}
    for name in graph.outputs.values():
        final.pop(name, None)
    last: dict[int, list[str]] = {}
    for name, index in final.items():
        last.setdefault(index, []).append(name)
    object.__setattr__(graph, "_last", last)
    return last
