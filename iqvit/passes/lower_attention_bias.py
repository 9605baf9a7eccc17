"""y = sdpa(q, k, v, bias)  ->  y = matmul(softmax(add(mul(matmul(q, k_t), scale), bias)), v)"""

from typing import Any

from torch import fx

from iqvit.canonical import aten, constant, is_constant, shape
from iqvit.passes.editing import calls, insert, replace, schema_arguments


def lower_attention_bias(module: fx.GraphModule) -> None:
    """Take attention with a constant position bias apart, since `attention` adds none.

    A boolean mask, or one with infinite values, stays for the checker: no scale holds it.
    """
    for node in calls(module, aten.scaled_dot_product_attention):
        values = schema_arguments(node)
        plain = values["dropout_p"] == 0 and not values["is_causal"] and not values["enable_gqa"]
        if plain and _is_bias(values["attn_mask"]):
            _lower(node, values)


def _is_bias(mask: Any) -> bool:
    """Whether it is a constant of finite values, not all of them zero."""
    if not is_constant(mask) or not constant(mask).is_floating_point():
        return False
    return bool(constant(mask).isfinite().all()) and bool(constant(mask).any())


def _lower(node: fx.Node, values: dict[str, Any]) -> None:
    q, k, v = (values[key] for key in ("query", "key", "value"))
    scale = shape(q)[-1] ** -0.5 if values["scale"] is None else values["scale"]
    rank = len(shape(k))
    k_t = insert(node, aten.permute.default, k, [*range(rank - 2), rank - 1, rank - 2])
    scores = insert(node, aten.matmul.default, q, k_t)
    scaled = insert(node, aten.mul.Tensor, scores, scale)
    biased = insert(node, aten.add.Tensor, scaled, values["attn_mask"])
    weights = insert(node, aten.softmax.int, biased, len(shape(biased)) - 1)
    replace(node, aten.matmul.default, weights, v)
