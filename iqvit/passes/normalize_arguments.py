"""y = conv2d(x, w, b, [16, 16])  ->  y = conv2d(x, w, b, [16, 16], [0, 0], [1, 1], 1)"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from iqvit.canonical import aten, gelu, shape
from iqvit.passes.editing import (
    calls,
    insert,
    non_negative,
    operands,
    packet_of,
    replace,
    schema_arguments,
)
from iqvit.sampling import grid_sample


def normalize_arguments(module: fx.GraphModule) -> None:
    """Make every argument positional and explicit: defaults, pairs, non-negative dimensions."""
    for node in calls(module, *RULES):
        RULES[packet_of(node)](node, schema_arguments(node))


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _dim(values: dict[str, Any]) -> int:
    return non_negative(values["dim"], max(1, len(shape(values["self"]))))


def _conv2d(node: fx.Node, values: dict[str, Any]) -> None:
    dilation, padding = _pair(values["dilation"]), values["padding"]
    if padding == "same":
        kernel = shape(values["weight"])[2:]
        total = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
        if any(amount % 2 for amount in total):
            return
        padding = [amount // 2 for amount in total]
    elif padding == "valid":
        padding = [0, 0]
    x, weight, bias = values["input"], values["weight"], values["bias"]
    geometry = (_pair(values["stride"]), _pair(padding), dilation, values["groups"])
    replace(node, aten.conv2d.default, x, weight, bias, *geometry)


def _layer_norm(node: fx.Node, values: dict[str, Any]) -> None:
    args = [values[key] for key in ("input", "normalized_shape", "weight", "bias", "eps")]
    replace(node, aten.layer_norm.default, *args)


def _softmax(node: fx.Node, values: dict[str, Any]) -> None:
    if values.get("dtype") in (None, torch.float32):
        replace(node, aten.softmax.int, values["self"], _dim(values))


def _gelu(node: fx.Node, values: dict[str, Any]) -> None:
    replace(node, gelu, values["self"], values["approximate"])


def _max_pool2d(node: fx.Node, values: dict[str, Any]) -> None:
    keys = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (_pair(values[key]) for key in keys)
    grown = [(size - 1) * d + 1 for size, d in zip(kernel, dilation, strict=True)]
    ceil_mode = values["ceil_mode"] and not _is_exact(node, grown, stride or kernel, padding)
    args = (kernel, stride or kernel, padding, dilation, ceil_mode)
    replace(node, aten.max_pool2d.default, values["self"], *args)


def _is_exact(node: fx.Node, kernel: list[int], stride: list[int], padding: list[int]) -> bool:
    """Whether no window of a pooling goes past the end, so that rounding its size up is idle."""
    sizes = shape(operands(node)[0])[-2:]
    windows = zip(sizes, kernel, stride, padding, strict=True)
    return all((size + 2 * p - k) % s == 0 for size, k, s, p in windows)


def _avg_pool2d(node: fx.Node, values: dict[str, Any]) -> None:
    kernel, stride, padding = (_pair(values[key]) for key in ("kernel_size", "stride", "padding"))
    ceil_mode = values["ceil_mode"] and not _is_exact(node, kernel, stride or kernel, padding)
    rest = [ceil_mode, values["count_include_pad"], values["divisor_override"]]
    replace(node, aten.avg_pool2d.default, values["self"], kernel, stride or kernel, padding, *rest)


def _cat(node: fx.Node, values: dict[str, Any]) -> None:
    tensors = list(values["tensors"])
    dim = non_negative(values.get("dim", 0), len(shape(node)))
    replace(node, aten.cat.default, tensors, dim)


def _stack(node: fx.Node, values: dict[str, Any]) -> None:
    """Stacking is concatenation along a dimension of size 1."""
    dim = non_negative(values["dim"], len(shape(node)))
    size = [*shape(node)[:dim], 1, *shape(node)[dim + 1 :]]
    pieces = [insert(node, aten.reshape.default, piece, size) for piece in values["tensors"]]
    replace(node, aten.cat.default, pieces, dim)


def _clamp(node: fx.Node, values: dict[str, Any]) -> None:
    _bound(node, values["self"], values["min"], values["max"])


def _hardtanh(node: fx.Node, values: dict[str, Any]) -> None:
    _bound(node, values["self"], values["min_val"], values["max_val"])


def _relu6(node: fx.Node, values: dict[str, Any]) -> None:
    _bound(node, values["self"], 0.0, 6.0)


def _bound(node: fx.Node, x: Any, lo: Any, hi: Any) -> None:
    """A clamp with bounds of type float; one that lacks a bound stays for the checker."""
    if lo is not None and hi is not None:
        replace(node, aten.clamp.default, x, float(lo), float(hi))


def _topk(node: fx.Node, values: dict[str, Any]) -> None:
    args = (values["k"], _dim(values), values["largest"], values["sorted"])
    if len(operands(node)) != 5 or tuple(operands(node)[1:]) != args:
        replace(node, aten.topk.default, values["self"], *args)


def _argmax(node: fx.Node, values: dict[str, Any]) -> None:
    if values["dim"] is not None:
        replace(node, aten.argmax.default, values["self"], _dim(values), values["keepdim"])


def _grid_sampler(node: fx.Node, values: dict[str, Any]) -> None:
    """Zeros outside and pixels as areas; one image, read bilinearly or at the nearest cell."""
    mode = {0: "bilinear", 1: "nearest"}.get(values["interpolation_mode"])
    plain = values["padding_mode"] == 0 and not values["align_corners"]
    if mode is not None and plain and len(shape(node)) == 4 and shape(node)[0] == 1:
        replace(node, grid_sample, values["input"], values["grid"], mode)


RULES: dict[Any, Callable[[fx.Node, dict[str, Any]], None]] = {
    aten.conv2d: _conv2d,
    aten.layer_norm: _layer_norm,
    aten.softmax: _softmax,
    aten._softmax: _softmax,
    aten.gelu: _gelu,
    aten.max_pool2d: _max_pool2d,
    aten.avg_pool2d: _avg_pool2d,
    aten.cat: _cat,
    aten.concat: _cat,
    aten.stack: _stack,
    aten.clamp: _clamp,
    aten.hardtanh: _hardtanh,
    aten.relu6: _relu6,
    aten.topk: _topk,
    aten.argmax: _argmax,
    aten.grid_sampler: _grid_sampler,
}
