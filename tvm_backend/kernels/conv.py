"""Operators over channels-last images: which kernel computes them."""

from collections.abc import Callable

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.base import Op
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.max_pool import MaxPool
from iqvit.ops.upsample_nearest import UpsampleNearest
from iqvit.tvm_backend.channels_last import ChannelsLast
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.conv_kernel import (
    Window,
    block_of,
    border_row,
    conv_kernel,
    window_weights,
)
from iqvit.tvm_backend.kernels.gemm_form import Gemm
from iqvit.tvm_backend.kernels.images import avg_pool, max_pool, upsample_nearest
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.linear import followers_of
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.requant import Requant, form_of, scalars_of
from iqvit.tvm_backend.kernels.stages import follow


def channels_last(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an operator over channels-last images and its followers; None where none fits."""
    op = group.head.op
    if not isinstance(op, ChannelsLast) or type(op.inner) not in OFFERS:
        return None
    return OFFERS[type(op.inner)](graph, group, isa)


def conv(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a convolution without groups."""
    node = group.head
    if not isinstance(node.op, ChannelsLast):
        return None
    op = node.op.inner
    if not isinstance(op, Conv2d) or op.groups != 1 or op.shift < 1:
        return None
    followed = followers_of(graph, group, isa)
    if followed is None:
        return None
    stages, values = followed
    x, weight, bias, mult = graph.types_of(node)
    n, channels, kh, kw = weight.shape
    planes = node.op.planes
    height, width = x.shape[2:] if planes else x.shape[1:3]
    window = Window((height, width, channels), (kh, kw), op.stride, op.padding, op.dilation, planes)
    isa = block_of(isa, window, n)
    requant = Requant(op.shift, op.zero_point, op.dtype, op.lo, op.hi)
    out = group.last.type
    gemm = Gemm(
        out.size // n, n, window.depth(isa), x.dtype, form_of(requant), out.dtype, given=True
    )
    packed = pack_weights(
        window_weights(np.asarray(weight.value), isa),
        np.asarray(bias.value),
        np.asarray(mult.value),
        signed=x.dtype == "int8",
        dtype=gemm.value_dtype,
        isa=isa,
    )
    if packed.mult is None:
        return None
    extras = tuple(
        extra
        for i, stage in enumerate(stages)
        for extra in stage.extras(gemm.m, gemm.n, f"stage{i}_")
    )
    epilogue = follow(stages, isa, gemm.out_dtype) if stages else None
    return Call(
        "_".join(["conv", *(stage.op.NAME for stage in stages)]),
        (window, gemm, tuple(stages)),
        lambda name: conv_kernel(window, gemm, isa, name, extras, epilogue),
        (
            As(node.inputs[0], (x.size,)),
            packed.weight,
            packed.bias,
            packed.mult,
            scalars_of(requant),
            border_row(window, op.pad_values, x.dtype, isa),
            *values,
        ),
        (gemm.m, n),
        gemm.out_dtype,
    )


OFFERS: dict[type[Op], Callable[[IntGraph, Group, Isa], Call | None]] = {
    Conv2d: conv,
    MaxPool: max_pool,
    AvgPool: avg_pool,
    UpsampleNearest: upsample_nearest,
}
"""Fast kernels by the operator over channels-last images."""
