"""From canonical float nodes to integer operators: one function for each canonical operator.

A converter gets the `Conversion` and the float node, emits integer nodes and returns the one that
stands for the float node's value.
"""

from collections.abc import Callable
from typing import Any

from torch import fx

from iqvit.converters import (
    activations,
    arithmetic,
    attention,
    layout,
    normalisation,
    pooling,
    products,
    resizing,
    sampling,
    selection,
)
from iqvit.intgraph import Node

CONVERTERS: dict[str, Callable[[Any, fx.Node], Node]] = {
    "conv2d": products.conv2d,
    "linear": products.linear,
    "matmul": products.matmul,
    "attention": attention.attention,
    "l2_normalize": normalisation.l2_normalize,
    "softmax": attention.softmax,
    "layer_norm": normalisation.layer_norm,
    "gelu": activations.gelu,
    "silu": activations.silu,
    "relu": activations.relu,
    "sigmoid": activations.sigmoid,
    "tanh": activations.tanh,
    "clamp": activations.clamp,
    "add": arithmetic.add,
    "mul": arithmetic.mul,
    "cat": layout.cat,
    "reshape": layout.reshape,
    "permute": layout.permute,
    "slice": layout.slice_,
    "select": layout.select,
    "mean": pooling.mean,
    "amax": pooling.amax,
    "max_pool2d": pooling.max_pool2d,
    "avg_pool2d": pooling.avg_pool2d,
    "upsample_nearest": resizing.upsample_nearest,
    "upsample_bilinear": resizing.upsample_bilinear,
    "topk": selection.topk,
    "getitem": selection.getitem,
    "argmax": selection.argmax,
    "floor_divide": selection.floor_divide,
    "remainder": selection.remainder,
    "take_rows": sampling.take_rows,
    "grid_sample": sampling.grid_sample,
    "deformable_attention": sampling.deformable_attention,
}
