"""Which kernel computes what: the fast kernels' offers for a graph, and the nodes left over."""

from collections.abc import Callable
from dataclasses import dataclass

from iqvit.intgraph import IntGraph
from iqvit.ops.add import Add
from iqvit.ops.attention import Attention
from iqvit.ops.base import Op
from iqvit.ops.concat import Concat
from iqvit.ops.constant import Constant
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.deform_attention import DeformAttention
from iqvit.ops.grid_sample import GridSample
from iqvit.ops.input import Input
from iqvit.ops.l2_normalize import L2Normalize
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.layernorm import LayerNorm
from iqvit.ops.linear import Linear
from iqvit.ops.lookup import Lookup
from iqvit.ops.matmul import Matmul
from iqvit.ops.multiply import Multiply
from iqvit.ops.permute import Permute
from iqvit.ops.rectified import Rectified
from iqvit.ops.requantise import Requantise
from iqvit.ops.reshape import Reshape
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import RowQuantise
from iqvit.ops.slice import Slice
from iqvit.ops.take_rows import TakeRows
from iqvit.ops.topk import TopK
from iqvit.ops.upsample_bilinear import UpsampleBilinear
from iqvit.tvm_backend.channels_last import ChannelsLast
from iqvit.tvm_backend.fuse import Group, groups
from iqvit.tvm_backend.kernels.attention import attention
from iqvit.tvm_backend.kernels.call import Call
from iqvit.tvm_backend.kernels.class_map import class_map
from iqvit.tvm_backend.kernels.conv import channels_last
from iqvit.tvm_backend.kernels.copies import concat, strided_copy, take_rows
from iqvit.tvm_backend.kernels.deform import deform_attention
from iqvit.tvm_backend.kernels.elementwise import elementwise
from iqvit.tvm_backend.kernels.grid_sample import grid_sample
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.l2_normalize import l2_normalize
from iqvit.tvm_backend.kernels.layernorm import layernorm
from iqvit.tvm_backend.kernels.linear import linear, portable_linear
from iqvit.tvm_backend.kernels.matmul import matmul
from iqvit.tvm_backend.kernels.patches import patch_embedding
from iqvit.tvm_backend.kernels.row_scale import row_quantise
from iqvit.tvm_backend.kernels.rows import row_linear, row_peak
from iqvit.tvm_backend.kernels.topk import topk
from iqvit.tvm_backend.targets import Target
from iqvit.tvm_backend.together import Together

FAST: dict[type[Op], Callable[[IntGraph, Group, Isa], Call | None]] = {
    Linear: linear,
    RowLinear: row_linear,
    Together: row_linear,
    RowPeak: row_peak,
    RowQuantise: row_quantise,
    Add: elementwise,
    LambdaShiftGelu: elementwise,
    Lookup: elementwise,
    Multiply: elementwise,
    Rectified: elementwise,
    Requantise: elementwise,
    Attention: attention,
    LayerNorm: layernorm,
    ChannelsLast: channels_last,
    Conv2d: patch_embedding,
    L2Normalize: l2_normalize,
    DeformAttention: deform_attention,
    GridSample: grid_sample,
    Matmul: matmul,
    UpsampleBilinear: class_map,
    Permute: strided_copy,
    Slice: strided_copy,
    Concat: concat,
    TakeRows: take_rows,
    TopK: topk,
}
"""Fast kernels by the operator that heads a group; each may decline, by None."""

PLAIN = "plain"
ALIAS = "alias"


@dataclass(frozen=True)
class Step:
    """A group and the kernel call that computes it; without one, the operator's plain lowering."""

    group: Group
    call: Call | None

    @property
    def kernel(self) -> str:
        """The kernel's family, `alias` for a reshape, `plain` for a plain lowering."""
        if self.call is not None:
            return self.call.kernel
        return ALIAS if isinstance(self.group.head.op, Reshape) else PLAIN

    @property
    def reads(self) -> frozenset[str]:
        """The graph's values that are read."""
        if self.call is not None:
            return self.call.reads
        return frozenset(self.group.head.inputs)


def plan(graph: IntGraph, target: Target) -> list[Step]:
    """The steps that compute the graph's outputs on `target`, in order."""
    stored = set(graph.outputs.values())
    while True:
        found = (_steps(graph, group, target.isa) for group in groups(graph, stored))
        steps = _needed(graph, [step for several in found for step in several])
        # A kernel that reads from far behind may want a value that another one keeps to itself.
        missing = _missing(graph, steps)
        if not missing:
            return steps
        stored |= missing


def plain_nodes(steps: list[Step]) -> list[str]:
    """Names of the nodes that no fast kernel computes."""
    return [step.group.last.name for step in steps if step.kernel == PLAIN]


def _steps(graph: IntGraph, group: Group, isa: Isa | None) -> list[Step]:
    """One step for as many leading nodes as a kernel takes, then steps for the others."""
    for count in range(len(group.followers), -1, -1):
        leading = Group(group.head, group.followers[:count])
        call = _offer(graph, leading, isa)
        if call is None and count > 0:
            continue
        rest = group.followers[count:]
        after = _steps(graph, Group(rest[0], rest[1:]), isa) if rest else []
        return [Step(leading, call), *after]
    raise AssertionError  # pragma: no cover


def _offer(graph: IntGraph, group: Group, isa: Isa | None) -> Call | None:
    if isa is None:
        return portable_linear(graph, group)
    fast = FAST.get(type(group.head.op))
    return None if fast is None else fast(graph, group, isa)


def _needed(graph: IntGraph, steps: list[Step]) -> list[Step]:
    """The steps without those whose values nobody reads any more."""
    needed = set(graph.outputs.values())
    kept: list[Step] = []
    for step in reversed(steps):
        if not needed.isdisjoint(_made(step)):
            kept.append(step)
            needed.update(step.reads)
    return kept[::-1]


def _missing(graph: IntGraph, steps: list[Step]) -> set[str]:
    """What steps read and none makes."""
    made = {name for step in steps for name in _made(step)}
    read = {name for step in steps for name in step.reads} - made
    return {name for name in read if not isinstance(graph[name].op, (Constant, Input))}


def _made(step: Step) -> list[str]:
    return [node.name for node in (step.group.last, *step.group.also)]
