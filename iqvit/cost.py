"""What a program costs: multiply-accumulates, parameters, bytes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from iqvit.intgraph import IntGraph
from iqvit.ops.constant import Constant


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    macs: multiply-accumulates; wide_macs: those of them with an operand of more than 8 bits.
    params: elements of the constants that stand for parameters of the float model (weights,
    biases, embeddings, gains); multipliers, zero points and tables, which conversion makes (`MADE`
    of an operator), are not counted. bytes: of all constants, made ones included. peak_bytes: the
    largest sum of values alive at once, constants aside, each freed after its last use.
    nodes and macs_by_op count per operator name, constants aside.
    """

    macs: int
    wide_macs: int
    params: int
    bytes: int
    peak_bytes: int
    nodes: Mapping[str, int]
    macs_by_op: Mapping[str, int]

    @property
    def eight_bit_share(self) -> float:
        """Share of the multiply-accumulates with 8-bit operands on both sides, 0..1."""
        return 1.0 if self.macs == 0 else 1 - self.wide_macs / self.macs


def cost(graph: IntGraph) -> Cost:
    """Count the graph's cost from its types."""
    computed = [node for node in graph if not isinstance(node.op, Constant)]
    nodes = Counter(node.op.NAME for node in computed)
    macs: Counter[str] = Counter()
    wide = 0
    for node in computed:
        types = graph.types_of(node)
        macs[node.op.NAME] += node.op.macs(*types)
        wide += node.op.wide_macs(*types)
    return Cost(
        macs=macs.total(),
        wide_macs=wide,
        params=sum(graph[name].type.size for name in parameters(graph)),
        bytes=sum(value.nbytes for value in graph.constants.values()),
        peak_bytes=peak_bytes(graph),
        nodes=MappingProxyType(dict(sorted(nodes.items()))),
        macs_by_op=MappingProxyType({name: n for name, n in sorted(macs.items()) if n}),
    )


def parameters(graph: IntGraph) -> set[str]:
    """Names of the constants that stand for parameters of the float model."""
    return {
        name
        for node in graph
        for place, name in enumerate(node.inputs)
        if place not in node.op.MADE and isinstance(graph[name].op, Constant)
    }


def peak_bytes(graph: IntGraph) -> int:
    """The largest number of bytes of computed values that are alive at once."""
    last = {name: index for index, node in enumerate(graph) for name in node.inputs}
    last.update(dict.fromkeys(graph.outputs.values(), len(graph.nodes)))
    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(graph):
        if isinstance(node.op, Constant):
            continue
        alive[node.name] = node.type.nbytes
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, index) > index}
    return peak
