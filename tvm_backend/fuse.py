"""Which nodes are computed by one kernel: groups of a node and those that only it feeds."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from iqvit.intgraph import IntGraph, Node
from iqvit.ops.add import Add
from iqvit.ops.argmax import Argmax
from iqvit.ops.attention import Attention
from iqvit.ops.constant import Constant
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.input import Input
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.layernorm import LayerNorm
from iqvit.ops.linear import Linear
from iqvit.ops.lookup import Lookup
from iqvit.ops.multiply import Multiply
from iqvit.ops.permute import Permute
from iqvit.ops.rectified import Rectified
from iqvit.ops.requantise import Requantise
from iqvit.ops.reshape import Reshape
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import RowQuantise
from iqvit.ops.upsample_bilinear import UpsampleBilinear
from iqvit.tvm_backend.channels_last import ChannelsLast

# What may follow a kind of operator in its kernel, element by element or by address only.
ELEMENTWISE = (Rectified, LambdaShiftGelu, Lookup, Multiply, Requantise, Add)
MOVES = (Permute, Reshape)
FOLLOWERS = {
    Linear: ELEMENTWISE,
    RowLinear: ELEMENTWISE,
    Attention: MOVES,
    Conv2d: MOVES,
    UpsampleBilinear: (Argmax,),
    ChannelsLast: ELEMENTWISE,
}


@dataclass(frozen=True)
class Group:
    """`head` and the nodes that follow it in one kernel; each alone reads the one before it."""

    head: Node
    followers: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in order."""
        return (self.head, *self.followers)

    @property
    def last(self) -> Node:
        """The node whose value the kernel stores."""
        return self.nodes[-1]

    @property
    def also(self) -> tuple[Node, ...]:
        """The nodes before the last one whose values are stored, too."""
        return tuple(node for node in self.nodes[:-1] if isinstance(node.op, RowPeak))

    def parts(self) -> Iterator["Group"]:
        """Every node as a group of its own."""
        return (Group(node) for node in self.nodes)


def groups(graph: IntGraph, stored: Collection[str] = ()) -> list[Group]:
    """Every computed node in exactly one group, in an order in which the groups can run.

    Outputs, and what is named by `stored`, are values of their own.
    """
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph:
        for name in node.inputs:
            readers[name].append(node)
    outputs = {*graph.outputs.values(), *stored}
    only = {n: found[0] for n, found in readers.items() if len(found) == 1 and n not in outputs}
    taken: set[str] = set()
    found: list[Group] = []
    for node in graph:
        if isinstance(node.op, (Constant, Input)) or node.name in taken:
            continue
        scaling = _scaling(node, readers, outputs)
        product = _product(node, scaling, readers, outputs)
        last = product[-1] if product else node
        followers = () if scaling and not product else tuple(_followers(last, only, taken))
        group = Group(node, (*scaling, *product, *followers))
        taken.update(member.name for member in group.nodes)
        found.append(group)
    # A follower may read values that are computed after the head.
    place = {node.name: i for i, node in enumerate(graph)}
    return sorted(found, key=lambda group: place[group.last.name])


def _scaling(
    head: Node, readers: Mapping[str, list[Node]], outputs: Collection[str]
) -> tuple[Node, ...]:
    """What scales the rows of a `layernorm` that nothing else reads, or at the peaks that `head`
    finds; the group stores peaks and scaled rows."""
    if isinstance(head.op, LayerNorm):
        peaks = [node for node in readers[head.name] if isinstance(node.op, RowPeak)]
        if len(peaks) != 1 or len(readers[head.name]) != 2 or head.name in outputs:
            return ()
        return (*peaks, *scaled) if (scaled := _scaling(peaks[0], readers, outputs)) else ()
    if not isinstance(head.op, RowPeak):
        return ()
    for node in readers[head.name]:
        others = [other for other in readers[head.name] if other is not node]
        last = isinstance(node.op, RowQuantise) and node.inputs == (*head.inputs, head.name)
        # Whoever else reads the peaks then runs later.
        if last and all(node.name in other.inputs for other in others):
            return (node,)
    return ()


def _product(
    head: Node,
    scaling: tuple[Node, ...],
    readers: Mapping[str, list[Node]],
    outputs: Collection[str],
) -> tuple[Node, ...]:
    """The `row_linear` that alone reads the rows which `head` and `scaling` scale, and their peaks;
    its kernel may scale them."""
    if not isinstance(head.op, RowPeak) or len(scaling) != 1:
        return ()
    scaled = scaling[0]
    if {head.name, scaled.name} & set(outputs) or len(readers[head.name]) != 2:
        return ()
    found = tuple(readers[scaled.name])
    fits = len(found) == 1 and isinstance(found[0].op, RowLinear)
    return found if fits and found[0].inputs[:2] == (scaled.name, head.name) else ()


def _followers(head: Node, readers: dict[str, Node], taken: set[str]) -> Iterator[Node]:
    allowed = FOLLOWERS.get(type(head.op), ())
    node = head
    while node.name in readers and isinstance(readers[node.name].op, allowed):
        node = readers[node.name]
        shrinks = node.type.size != head.type.size and not isinstance(node.op, Argmax)
        if shrinks or node.name in taken:
            return
        yield node
