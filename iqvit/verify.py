"""The proofs of a program: what is known about its integers before it ever runs."""

from dataclasses import dataclass

from iqvit.errors import GraphError
from iqvit.intgraph import IntGraph, check
from iqvit.inttype import LIMITS
from iqvit.ops.constant import Constant


@dataclass(frozen=True)
class Proof:
    """A value or accumulator of a node stays in `lo..hi`, which lies in its dtype.

    `what` is "value", "constant" or "accumulator"; `headroom_bits` is how often the range could
    double and still fit.
    """

    node: str
    what: str
    dtype: str
    lo: int
    hi: int

    @property
    def headroom_bits(self) -> int:
        """Doublings of the range that still fit in the dtype; its whole width for 0..0."""
        least, most = LIMITS[self.dtype]
        fits = [(most - least).bit_length()]
        if self.hi > 0:
            fits.append((most // self.hi).bit_length() - 1)
        if self.lo < 0:
            fits.append((least // self.lo).bit_length() - 1)
        return min(fits)

    def __str__(self) -> str:
        return (
            f"{self.node}: {self.what} {self.lo}..{self.hi} fits {self.dtype}, "
            f"{self.headroom_bits} bits of head-room"
        )


def prove(graph: IntGraph) -> list[Proof]:
    """Prove the graph anew and state every fact: one proof a value, one more an accumulator.

    Raises `OverflowProofError` or `GraphError` naming the node where a proof fails.
    """
    check(graph)
    check_no_float(graph)
    proofs: list[Proof] = []
    for node in graph:
        kind = node.type
        what = "constant" if isinstance(node.op, Constant) else "value"
        proofs.append(Proof(node.name, what, kind.dtype, kind.lo, kind.hi))
        accumulated = node.op.accumulator(*graph.types_of(node))
        if accumulated is not None:
            proofs.append(Proof(node.name, "accumulator", "int32", *accumulated))
    return proofs


def check_no_float(graph: IntGraph) -> None:
    """Raise `GraphError` for any type, constant or attribute that is not of integers."""
    for node in graph:
        kinds = {node.type.dtype}
        if node.type.value is not None:
            kinds.add(node.type.value.dtype.name)
        if not kinds <= set(LIMITS):
            raise GraphError(f"node {node.name!r} has the type {', '.join(sorted(kinds))}")
        for name, value in node.op.attributes().items():
            values = value if isinstance(value, tuple) else (value,)
            if any(type(item) not in (int, str) for item in values):
                raise GraphError(f"the attribute {name} of node {node.name!r} is {value!r}")


def tightest(proofs: list[Proof]) -> Proof | None:
    """The accumulator with the least head-room, None where there is no accumulator."""
    accumulators = [proof for proof in proofs if proof.what == "accumulator"]
    return min(accumulators, key=lambda proof: proof.headroom_bits, default=None)
