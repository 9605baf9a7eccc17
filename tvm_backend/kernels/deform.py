"""`deform_attention`: which kernel call computes it."""

import numpy as np

from iqvit.intgraph import IntGraph
from iqvit.inttype import LIMITS
from iqvit.ops.deform_attention import DeformAttention
from iqvit.ops.taps import centre
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.deform_kernel import Problem, deform_kernel
from iqvit.tvm_backend.kernels.integers import fits32, wide_order
from iqvit.tvm_backend.kernels.isa import Isa


def deform_attention(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call of a `deform_attention`; None where its step factors leave int32."""
    node = group.head
    op = node.op
    if not isinstance(op, DeformAttention) or group.followers:
        return None
    if max(map(abs, op.step)) > LIMITS["int32"][1]:
        return None
    value, boxes, _, logits = graph.types_of(node)
    heads = logits.shape[-1] // op.samples_a_head
    problem = Problem(
        op.mode,
        op.fraction,
        op.full,
        boxes.shape[1],
        heads,
        op.samples_a_head,
        value.shape[-1] // heads,
        value.shape[1],
        logits.dtype,
        op.dtype,
        op.lo,
        op.hi,
        fits32(*op.unsaturated(value)),
    )
    before, _ = centre(op.mode, op.fraction, op.place_shift)
    constant = op.offset_out + ((1 << op.shift) >> 1)
    places = (op.place_shift, before)
    exp = (op.pre, op.cap, op.exp_multiplier, op.exp_shift)
    scalars = (*places, *exp, op.numerator, constant, op.shift)
    names = node.inputs
    sizes = [kind.size for kind in graph.types_of(node)]
    return Call(
        "deform_attention",
        problem,
        lambda name: deform_kernel(name, problem, isa),
        (
            *(As(source, (size,)) for source, size in zip(names, sizes, strict=True)),
            *_geometry(op, problem, isa),
            np.array(scalars, np.int64),
        ),
        node.type.shape,
        op.dtype,
    )


def _geometry(op: DeformAttention, problem: Problem, isa: Isa) -> tuple[np.ndarray, ...]:
    """Of the samples of a head, in whole vectors: level sizes int32 `[3, K]` (width, height, first
    token), step factors int32 `[2, K]`, box factors int64 `[2, K]`, the lanes of every vector in
    `wide_order`. A lane without a sample stands for a level of one cell."""
    rows = op.geometry()
    padded = np.zeros((problem.vectors(isa) * isa.lanes, 7), np.int64)
    padded[:, :2] = 1
    padded[: len(rows)] = rows
    by_kind = padded.T
    box = by_kind[3:5].reshape(2, -1, isa.lanes)[..., wide_order(isa.lanes)]
    sizes, step = by_kind[:3].astype(np.int32), by_kind[5:].astype(np.int32)
    return (
        np.ascontiguousarray(sizes),
        np.ascontiguousarray(step),
        np.ascontiguousarray(box).reshape(2, -1),
    )
