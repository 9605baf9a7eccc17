"""Images channels-last: the pass that decides where their channels lie together.

The fast kernels of convolutions, pooling and upsampling read and write `[1, H, W, C]`. Operators
that work element by element and concatenations follow what they read, and tokens `[1, H*W, C]` are
the same bytes. A permutation is left where a value is read in the other order, nowhere else.
"""

from dataclasses import dataclass, replace

import numpy as np

from iqvit.intgraph import GraphBuilder, IntGraph, Node
from iqvit.ops.add import Add
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.base import Op
from iqvit.ops.concat import Concat
from iqvit.ops.constant import Constant
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.input import Input
from iqvit.ops.linear import Linear
from iqvit.ops.lookup import Lookup
from iqvit.ops.max_pool import MaxPool
from iqvit.ops.multiply import Multiply
from iqvit.ops.permute import Permute
from iqvit.ops.rectified import Rectified
from iqvit.ops.requantise import Requantise
from iqvit.ops.reshape import Reshape
from iqvit.ops.slice import Slice
from iqvit.ops.upsample_nearest import UpsampleNearest
from iqvit.tvm_backend.channels_last import TO_FIRST, TO_LAST, ChannelsLast
from iqvit.tvm_backend.fold_saturation import fold_saturation
from iqvit.tvm_backend.join_products import join_products
from iqvit.tvm_backend.targets import Target

IMAGES = (MaxPool, AvgPool, UpsampleNearest)
PAIRS = (Add, Multiply)
SINGLES = (Requantise, Lookup, Rectified)
TRANSPOSED = (0, 2, 1)
LAST_AXIS = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where the axes of `[1, C, H, W]` are channels-last."""
PLANES = 4
"""Images of at most so many channels are read plane by plane, as they come."""


def arrange(graph: IntGraph, target: Target) -> IntGraph:
    """The same program as the fast kernels like it: saturations folded, products of the same rows
    together, and the images around convolutions channels-last.

    The graph itself where the target has no fast kernels or nothing is to be done. The outputs are
    the same; a node keeps its name where one node still stands for its value.
    """
    if target.isa is None:
        return graph
    graph = join_products(fold_saturation(graph), target.isa)
    if not any(_is_convolution(graph, node) for node in graph):
        return graph
    state = _Arrangement(graph, GraphBuilder(), {}, {})
    for node in graph:
        state.place(node)
    outputs = {name: state.first(source).name for name, source in graph.outputs.items()}
    return state.builder.finish(outputs, graph.meta)


def _is_convolution(graph: IntGraph, node: Node) -> bool:
    """Whether the node is a convolution that is computed channels-last.

    Windows that lie side by side (the patch embedding) have a kernel of their own.
    """
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1 or op.shift < 1:
        return False
    kernel = graph[node.inputs[1]].type.shape[2:]
    return op.stride != kernel or op.padding != (0, 0) or kernel == (1, 1)


@dataclass(frozen=True)
class _Arrangement:
    """The new graph so far, with every value of `graph` in the orders in which it is there."""

    graph: IntGraph
    builder: GraphBuilder
    firsts: dict[str, Node]
    """Values as they are in `graph`."""
    lasts: dict[str, Node]
    """Values `[1, C, H, W]` and `[1, C, P]` with their channels last."""

    def first(self, name: str) -> Node:
        """The value as it is in `graph`."""
        if name not in self.firsts:
            node = self.lasts[name]
            dims = TO_FIRST if len(node.type.shape) == 4 else TRANSPOSED
            self.firsts[name] = self._add(self.graph[name], Permute(dims), [node])
        return self.firsts[name]

    def last(self, name: str) -> Node:
        """The value with its channels last."""
        if name not in self.lasts:
            node = self.firsts[name]
            if node.type.value is not None:
                shape = (1,) * (4 - len(node.type.shape)) + node.type.shape
                value = np.asarray(node.type.value).reshape(shape).transpose(TO_LAST)
                made = self.builder.constant(f"{name}_last", np.ascontiguousarray(value))
            else:
                dims = TO_LAST if len(node.type.shape) == 4 else TRANSPOSED
                made = self._add(self.graph[name], Permute(dims), [node])
            self.lasts[name] = made
        return self.lasts[name]

    def place(self, node: Node) -> None:
        """Add what computes the node's value."""
        if isinstance(node.op, (Input, Constant)):
            self.builder.nodes[node.name] = node
            self.firsts[node.name] = node
        elif _is_convolution(self.graph, node):
            self.lasts[node.name] = self._convolution(node)
        elif not (self._place_moved(node) or self._place_last(node)):
            inputs = [self.first(name) for name in node.inputs]
            self.firsts[node.name] = self._add(node, node.op, inputs)

    def _only_last(self, name: str) -> bool:
        return name in self.lasts and name not in self.firsts

    def _add(self, node: Node, op: Op, inputs: list[Node]) -> Node:
        return self.builder.add(
            node.name, op, inputs, qparams=node.qparams, origin=node.origin, source=node.source
        )

    def _convolution(self, node: Node) -> Node:
        op = node.op
        weight = np.asarray(self.graph[node.inputs[1]].type.value)
        others = [self.first(name) for name in node.inputs[2:]]
        x = node.inputs[0]
        if not isinstance(op, Conv2d):
            raise TypeError(f"{op.NAME} is no convolution")
        if (weight.shape[2:], op.stride, op.padding) == ((1, 1), (1, 1), (0, 0)):
            rows = self.builder.constant(f"{node.inputs[1]}_rows", weight[:, :, 0, 0].copy())
            linear = Linear(op.shift, op.zero_point, op.dtype, op.lo, op.hi)
            return self._add(node, linear, [self.last(x), rows, *others])
        planes = x not in self.lasts and weight.shape[1] <= PLANES
        image = self.first(x) if planes else self.last(x)
        inputs = [image, self.first(node.inputs[1]), *others]
        return self._add(node, ChannelsLast(op, planes), inputs)

    def _place_moved(self, node: Node) -> bool:
        """Reshapes and permutations that leave the bytes of a channels-last value as they are."""
        op, source = node.op, node.inputs[0]
        shape = self.graph[source].type.shape
        if isinstance(op, Permute):
            if op.dims in (TO_LAST, TRANSPOSED) and self._only_last(source):
                self.firsts[node.name] = self.lasts[source]
                return True
            if op.dims in (TO_FIRST, TRANSPOSED) and source in self.firsts:
                self.lasts[node.name] = self.firsts[source]
                return True
        images = all(len(s) in (3, 4) for s in (shape, node.type.shape))
        if isinstance(op, Reshape) and images and self._only_last(source):
            images_of, channels, *sizes = node.type.shape
            if shape[0] == images_of == 1 and channels == shape[1]:
                moved = Reshape((1, *sizes, channels))
                self.lasts[node.name] = self._add(node, moved, [self.lasts[source]])
                return True
        return False

    def _place_last(self, node: Node) -> bool:
        """Operators that compute channels-last because what they read is so."""
        op = node.op
        read = [name for name in node.inputs if self._only_last(name)]
        if not read or len(node.type.shape) != 4:
            return False
        if isinstance(op, IMAGES):
            made: Op = ChannelsLast(op)
        elif isinstance(op, Concat):
            made = Concat(LAST_AXIS[op.axis])
        elif isinstance(op, Slice):
            made = replace(op, axis=LAST_AXIS[op.axis])
        elif isinstance(op, (*PAIRS, *SINGLES)):
            made = op
        else:
            return False
        if not all(self._follows(node, place) for place in range(len(node.inputs))):
            return False
        tables = isinstance(op, SINGLES)
        inputs = [
            self.first(name)
            if (tables and i > 0) or self.graph[name].type.size == 1
            else self.last(name)
            for i, name in enumerate(node.inputs)
        ]
        self.lasts[node.name] = self._add(node, made, inputs)
        return True

    def _follows(self, node: Node, place: int) -> bool:
        """Whether an input of an operator can be had for channels-last images."""
        kind = self.graph[node.inputs[place]].type
        if isinstance(node.op, SINGLES) and place > 0:
            # The table, and numbers for all channels: those of a channel go along the last axis.
            return place == 1 or kind.size == 1
        return kind.size == 1 or len(kind.shape) == 4 or kind.value is not None
