"""`linear` on the int8 GEMM, with what follows it fused into its epilogue."""

import math
from dataclasses import replace

import numpy as np

from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import IntType
from iqvit.ops.linear import Linear
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.kernels.call import As, Call
from iqvit.tvm_backend.kernels.gemm import gemm_kernel
from iqvit.tvm_backend.kernels.gemm_form import Gemm
from iqvit.tvm_backend.kernels.isa import Isa
from iqvit.tvm_backend.kernels.packing import pack_weights
from iqvit.tvm_backend.kernels.portable import portable_gemm_kernel
from iqvit.tvm_backend.kernels.requant import Requant, form_of, scalars_of
from iqvit.tvm_backend.kernels.stage_form import Stage, Value
from iqvit.tvm_backend.kernels.stages import follow, stage_of


def requant_of(op: Linear) -> Requant:
    """The requantisation of a product."""
    return Requant(op.shift, op.zero_point, op.dtype, op.lo, op.hi)


def constants_of(graph: IntGraph, node: Node) -> list[np.ndarray]:
    """Weight, bias and multiplier of a product."""
    values = [graph[name].type.value for name in node.inputs[1:]]
    return [np.asarray(value) for value in values]


def gemm_of(op: Linear, x: IntType, weight: np.ndarray, out: IntType) -> Gemm:
    """The GEMM of a `linear` node."""
    n, k = weight.shape
    return Gemm(math.prod(x.shape[:-1]), n, k, x.dtype, requant_of(op), out.dtype)


def linear(graph: IntGraph, group: Group, isa: Isa) -> Call | None:
    """The call for a `linear` and its followers; None where this kernel does not fit."""
    node = group.head
    op = node.op
    if not isinstance(op, Linear) or op.shift < 1:
        return None
    followed = followers_of(graph, group, isa)
    if followed is None:
        return None
    stages, values = followed
    x = graph[node.inputs[0]].type
    weight, bias, mult = constants_of(graph, node)
    requant = requant_of(op)
    gemm = gemm_of(op, x, weight, group.last.type)
    gemm = replace(gemm, requant=form_of(requant), given=True)
    packed = pack_weights(
        weight, bias, mult, signed=x.dtype == "int8", dtype=gemm.value_dtype, isa=isa
    )
    if packed.mult is None:
        return None
    extras = tuple(
        extra
        for i, stage in enumerate(stages)
        for extra in stage.extras(gemm.m, gemm.n, f"stage{i}_")
    )
    epilogue = follow(stages, isa, gemm.out_dtype) if stages else None
    x_rows = As(node.inputs[0], (gemm.m, gemm.k))
    return Call(
        "_".join(["gemm", *(stage.op.NAME for stage in stages)]),
        (gemm, tuple(stages)),
        lambda name: gemm_kernel(gemm, isa, name, extras, epilogue),
        (x_rows, packed.weight, packed.bias, packed.mult, scalars_of(requant), *values),
        (gemm.m, gemm.n),
        gemm.out_dtype,
    )


def followers_of(graph: IntGraph, group: Group, isa: Isa) -> tuple[list[Stage], list[Value]] | None:
    """The followers as stages of an epilogue and their operands; None where one does not fit."""
    stages: list[Stage] = []
    values: list[Value] = []
    before = group.head
    for node in group.followers:
        place = node.inputs.index(before.name)
        found = stage_of(graph, node, place, by_bytes=isa.byte_tables)
        if found is None or node.type.shape != group.head.type.shape:
            return None
        stages.append(found[0])
        values.extend(found[1])
        before = node
    return stages, values


def portable_linear(graph: IntGraph, group: Group) -> Call | None:
    """The call for a `linear` alone in plain loops; None where it has followers."""
    node = group.head
    op = node.op
    if not isinstance(op, Linear) or op.shift < 1 or group.followers:
        return None
    weight, bias, mult = constants_of(graph, node)
    gemm = gemm_of(op, graph[node.inputs[0]].type, weight, node.type)
    return Call(
        "gemm",
        gemm,
        lambda name: portable_gemm_kernel(gemm, name),
        (As(node.inputs[0], (gemm.m, gemm.k)), weight, bias, mult),
        (gemm.m, gemm.n),
        gemm.out_dtype,
    )
