"""y = scaled_dot_product_attention(q, k, v)  ->  y = attention(q, k, v, 0.125)"""

from math import prod
from typing import Any

import torch
from torch import fx

from iqvit.canonical import aten, attention, constant, is_constant, shape
from iqvit.passes.editing import calls, insert, schema_arguments, substitute


def normalize_attention(module: fx.GraphModule) -> None:
    """Make the scale explicit and drop masks that mask nothing; q, k, v get [1, heads, N, D].

    Attention with a mask, causality, dropout or grouped queries stays for the checker.
    """
    for node in calls(module, aten.scaled_dot_product_attention):
        values = schema_arguments(node)
        q, k, v = (values[key] for key in ("query", "key", "value"))
        if not _is_plain(values) or not have_equal_heads(q, k, v):
            continue
        scale = values["scale"]
        scale = float(shape(q)[-1]) ** -0.5 if scale is None else float(scale)
        substitute(node, insert_attention(node, q, k, v, scale))


def _is_plain(values: dict[str, Any]) -> bool:
    return (
        values["dropout_p"] == 0 and not values["is_causal"] and _masks_nothing(values["attn_mask"])
    )


def _masks_nothing(mask: Any) -> bool:
    if mask is None:
        return True
    if not is_constant(mask):
        return False
    value = constant(mask)
    return bool(value.all()) if value.dtype == torch.bool else not bool(value.any())


def have_equal_heads(q: fx.Node, k: fx.Node, v: fx.Node) -> bool:
    """Whether the leading dimensions (windows, heads) agree without broadcasting."""
    leading = [shape(node)[:-2] for node in (q, k, v)]
    return leading[0] == leading[1] == leading[2] and len(shape(q)) > 1


def insert_attention(anchor: fx.Node, q: fx.Node, k: fx.Node, v: fx.Node, scale: float) -> fx.Node:
    """`attention` before `anchor`; all leading dimensions become heads, [1, heads, N, D]."""
    leading = shape(q)[:-2]
    if len(leading) == 2 and leading[0] == 1:
        return insert(anchor, attention, q, k, v, scale)
    heads = prod(leading)
    q, k, v = (
        insert(anchor, aten.reshape.default, x, [1, heads, *shape(x)[-2:]]) for x in (q, k, v)
    )
    result = insert(anchor, attention, q, k, v, scale)
    return insert(anchor, aten.reshape.default, result, [*leading, *shape(result)[-2:]])
