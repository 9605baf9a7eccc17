"""`conv2d` over patches that do not overlap (the patch embedding), as rows on the int8 GEMM."""

import math

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.ops.conv2d import Conv2d
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.copies import patches_kernel
from iqvit.tvm_backend.kernels.gemm import gemm_kernel
from iqvit.tvm_backend.kernels.gemm_form import Gemm
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.requant import Requant, form_of, scalars_of
from iqvit.tvm_backend.layout import tail_strides


def patch_embedding(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `conv2d` whose result is permuted to `[pixels, channels]` by its followers.

    None where patches overlap, are padded or dilated, or where the result stays `[N, H, W]`.
    """
    node = group.head
    op = node.op
    if not isinstance(op, Conv2d) or op.shift < 1:
        return None
    x, weight, bias, mult = graph.types_of(node)
    n, channels, ph, pw = weight.shape
    plain = op.groups == 1 and op.padding == (0, 0) and op.dilation == (1, 1)
    if not plain or op.stride != (ph, pw) or x.shape[2] % ph or x.shape[3] % pw:
        return None
    down, across = node.type.shape[2:]
    rows = down * across
    strides = tail_strides(node, group.followers)
    if strides is None or not _as_rows(node.type.shape, strides):
        return None
    k = channels * ph * pw
    requant = Requant(op.shift, op.zero_point, op.dtype, op.lo, op.hi)
    gemm = Gemm(rows, n, k, x.dtype, form_of(requant), op.dtype, given=True)
    packed = pack_weights(
        np.asarray(weight.value).reshape(n, k),
        np.asarray(bias.value),
        np.asarray(mult.value),
        signed=x.dtype == "int8",
        dtype=gemm.value_dtype,
        isa=isa,
    )
    if packed.mult is None:
        return None
    image = (x.shape[1], x.shape[2], x.shape[3])
    cut = Call(
        "patches",
        (image, (ph, pw), x.dtype),
        lambda name: patches_kernel(name, image, (ph, pw), x.dtype),
        (As(node.inputs[0], (math.prod(image),)),),
        (rows, k),
        x.dtype,
    )
    return Call(
        "gemm",
        (gemm, ()),
        lambda name: gemm_kernel(gemm, isa, name),
        (cut, packed.weight, packed.bias, packed.mult, scalars_of(requant)),
        (rows, n),
        op.dtype,
    )


def _as_rows(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether `[1, N, H, W]` lies as `[H * W, N]`."""
    _, n, _down, across = shape
    wanted = (0, 1, across * n, n)
    pairs = zip(shape, strides, wanted, strict=True)
    return all(size == 1 or have == want for size, have, want in pairs)
