"""`attention` and the moves around it: which kernel call computes them."""

import numpy as np
import torch

from iqvit.intgraph import IntGraph
from iqvit.inttype import IntType
from iqvit.ops.attention import Attention
from iqvit.ops.exp2 import full_scale
from iqvit.ops.matmul import product_range
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.attention_form import NOTHING, Place, Problem
from iqvit.tvm_backend.kernels.attention_kernel import attention_kernel
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.exponential import takes_words
from iqvit.tvm_backend.kernels.integers import fits32
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.vector import bits_of
from iqvit.tvm_backend.layout import tail_strides, view_of

MOST_SCRATCH = 2**20
"""Bytes of scratch that a task may need."""


def attention(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of an `attention` and the moves that follow it; None where it does not fit."""
    node = group.head
    op = node.op
    if not isinstance(op, Attention) or op.bits != 8:
        return None
    q, k, v = graph.types_of(node)
    strides = tail_strides(node, group.followers)
    views = [view_of(graph, name) for name in node.inputs]
    per_lane = 32 // bits_of(op.dtype)
    fits = q.shape[3] % isa.group == 0 and v.shape[3] % per_lane == 0 and q.shape[0] == 1
    if strides is None or not fits or _scratch(k.shape[2], q.shape[3], v.shape[3]) > MOST_SCRATCH:
        return None
    if any(s[3] != 1 for s in (strides, *(view.strides for view in views))):
        return None
    roots = tuple(dict.fromkeys(view.root for view in views))
    places = [Place(roots.index(w.root), w.offset, w.strides[1], w.strides[2]) for w in views]
    shapes = tuple(_rows(graph[root].type) for root in roots)
    half = op.offset + ((1 << op.shift) >> 1)
    peak = max(-v.lo, v.hi) * full_scale(op.bits) * k.shape[2]
    low, high = min(v.lo, 0) * op.numerator, max(v.hi, 0) * op.numerator
    ends = (low + half) >> op.shift, (high + half) >> op.shift
    problem = Problem(
        op.bits,
        op.dtype,
        op.lo,
        op.hi,
        q.shape[1],
        q.shape[2],
        k.shape[2],
        q.shape[3],
        v.shape[3],
        shapes,
        _rows(group.last.type),
        places[0],
        places[1],
        places[2],
        Place(0, 0, strides[1], strides[2]),
        fits32(*ends),
        words=takes_words(op.exp, isa),
        vanishes=_vanishes(op, q, k),
        upper=_fits_upper_halves(op.shift, half, peak, ends),
    )
    exp = op.exp
    end = _of_upper_halves(op.shift, half) if problem.upper else (half, op.shift)
    scalars = (exp.pre, exp.cap, exp.multiplier, exp.shift, op.numerator, *end)
    return Call(
        "attention",
        problem,
        lambda name: attention_kernel(name, problem, isa),
        (
            *(As(root, shape) for root, shape in zip(roots, shapes, strict=True)),
            np.array(scalars, np.int64),
        ),
        problem.out_shape,
        op.dtype,
    )


def _vanishes(op: Attention, q: IntType, k: IntType) -> bool:
    """Whether `NOTHING` has no probability beside the least product."""
    least, most = product_range(q, k, q.shape[3])
    nearest = torch.tensor([least - NOTHING])
    return most - NOTHING < 2**31 and not op.exp.run(nearest, full_scale(op.bits)).any()


def _of_upper_halves(shift: int, offset: int) -> tuple[int, int]:
    """The offset of upper halves, and by how much accumulators are raised for them:
    `(a*r + offset) >> shift == (((a << t)*r >> 32) + (offset << t >> 32)) >> 1`, `t = 33 - shift`,
    if the raised offset has no bits below 2**32."""
    raised = 33 - shift
    return (offset << raised) >> 32, raised


def _fits_upper_halves(shift: int, offset: int, peak: int, ends: tuple[int, int]) -> bool:
    """Whether that holds, in int32, for accumulators up to `peak` and these results."""
    if shift > 33 or (offset << (33 - shift)) % 2**32:
        return False
    added, raised = _of_upper_halves(shift, offset)
    most = 2 * max(map(abs, ends)) + 1 + abs(added)
    return peak << raised < 2**31 and most < 2**31


def _rows(kind: IntType) -> tuple[int, int]:
    """The shape that rows have in other kernels, so that no view is needed between them."""
    return kind.size // kind.shape[-1], kind.shape[-1]


def _scratch(keys: int, depth: int, width: int) -> int:
    return keys * (2 * depth + 2 * width + 64 + 32)
