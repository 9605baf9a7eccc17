"""One operator, and what is fused to it, compiled without a program around them."""

import numpy as np
import pytest
import tvm
from tvm import relax

from iqvit.intgraph import GraphBuilder, Node
from iqvit.ops.input import Input
from iqvit.tvm_backend.fuse import Group
from iqvit.tvm_backend.lower import Lowering, lower
from iqvit.tvm_backend.pipeline import build
from iqvit.tvm_backend.plan import FAST, Step
from iqvit.tvm_backend.targets import TARGETS, missing_features


def needs(target):
    missing = missing_features(TARGETS[target].features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")


def program(graph, target):
    """A whole program compiled: a function of uint8 [1, C, H, W] to the arrays of its outputs."""
    machine = relax.VirtualMachine(build(lower(graph, target), TARGETS[target]), tvm.cpu())
    return lambda pixels: [value.numpy() for value in machine["main"](tvm.runtime.tensor(pixels))]


class Loose:
    """Nodes without the rule that a graph has one image: what a kernel needs of a graph."""

    def __init__(self, nodes):
        self.nodes = nodes

    def __getitem__(self, name):
        return self.nodes[name]

    def types_of(self, node):
        return [self.nodes[name].type for name in node.inputs]


def one_node(sample, *followers):
    """A sample's node, reading free values and constants, and what follows it, operators or tuples
    of an operator and its constants; and the values."""
    builder = GraphBuilder()
    values = []
    for i, kind in enumerate(sample.inputs):
        if kind.value is None:
            node = Node(f"x{i}", Input(kind.shape), (), kind)
            builder.nodes[node.name] = node
        else:
            node = builder.constant(f"c{i}", kind.value)
        values.append(node)
    nodes = [builder.add("out", sample.op, values)]
    for follower in followers:
        op, *constants = follower if isinstance(follower, tuple) else (follower,)
        rest = [builder.constant(f"{len(nodes)}{i}", value) for i, value in enumerate(constants)]
        nodes.append(builder.add("out", op, [nodes[-1], *rest]))
    return Loose(builder.nodes), Group(nodes[0], tuple(nodes[1:])), values


def compiled(graph, group, values, target):
    """A function of the free values' arrays; None where the kernel declines."""
    call = FAST[type(group.head.op)](graph, group, TARGETS[target].isa)
    if call is None:
        return None
    builder = relax.BlockBuilder()
    free = [node for node in values if node.type.value is None]
    variables = [relax.Var(n.name, relax.TensorType(n.type.shape, n.type.dtype)) for n in free]
    known = {node.name: variable for node, variable in zip(free, variables, strict=True)}
    lowering = Lowering(graph, builder, known, {})
    with builder.function("main", variables):
        with builder.dataflow():
            lowering.emit(Step(group, call))
            result = builder.emit_output(lowering.value(group.last.name))
        builder.emit_func_output(result)
    machine = relax.VirtualMachine(build(builder.get(), TARGETS[target]), tvm.cpu())

    def run(arrays):
        tensors = [
            tvm.runtime.tensor(a)
            for a, node in zip(arrays, values, strict=True)
            if node.type.value is None
        ]
        return machine["main"](*tensors).numpy()

    return run


def draw(kind, mode, rng):
    if kind.value is not None:
        return kind.value.copy()
    if mode == "random":
        return rng.integers(kind.lo, kind.hi + 1, kind.shape).astype(kind.dtype)
    if mode == "extreme":
        return rng.choice([kind.lo, kind.hi], kind.shape).astype(kind.dtype)
    low, high = max(kind.lo, -5), min(kind.hi, 5)
    if low > high:
        return np.full(kind.shape, kind.lo, kind.dtype)
    return rng.integers(low, high + 1, kind.shape).astype(kind.dtype)
