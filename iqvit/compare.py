"""Compare: the float model against its integer program, node by node, on the same images.

The idea is that of torchao's numeric debugger: every integer node knows the float node that it
stands for, so the first node of a bad model names itself.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from iqvit.canonical import CanonicalModel
from iqvit.errors import DataError, GraphError
from iqvit.interpret import check_images, evaluate
from iqvit.intgraph import IntGraph, Node
from iqvit.inttype import QParams
from iqvit.ops.constant import Constant
from iqvit.ops.input import Input
from iqvit.ops.topk import TopK

LAYOUT = frozenset(("concat", "gather", "permute", "reshape", "slice"))


@dataclass(frozen=True)
class NodeError:
    """How far an integer node is from the float node that it stands for, over all images.

    sqnr_db: 10 log10(sum f^2 / sum (f - r)^2) of float values f and the reals r that the integers
    stand for; infinite where they are equal. largest_steps: the largest |f - r| in steps of the
    node's own scale (half a step is perfect rounding). source: module path and source line.
    """

    node: str
    origin: str
    source: str
    op: str
    dtype: str
    sqnr_db: float
    largest_steps: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row for every node, in the order of the graph.

    sqnr_db is of all outputs together, `outputs` of each by name, in decibels; for an output of
    indices (a class map) both are of the values that it was chosen from. agreement: by name of such
    an output, the percentage of indices that are equal.
    """

    rows: tuple[NodeError, ...]
    sqnr_db: float
    outputs: Mapping[str, float]
    images: int
    agreement: Mapping[str, float] = field(default_factory=dict)

    def worst(self, n: int = 5) -> tuple[NodeError, ...]:
        """The `n` rows of the lowest SQNR, the worst first; of equals the earlier node.

        Layout operators are left out: they only repeat the error of what they read.
        """
        computed = [row for row in self.rows if row.op not in LAYOUT]
        return tuple(sorted(computed, key=lambda row: row.sqnr_db)[:n])


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    steps: float = 0.0

    @property
    def sqnr_db(self) -> float:
        return _decibels(self.signal, self.noise)


@dataclass
class _Pair:
    """Two nodes of which one stands for the other, and what is known of their difference."""

    node: Node
    qparams: QParams
    origin: str
    sums: _Sums = field(default_factory=_Sums)

    def add(self, exact: torch.Tensor, integers: torch.Tensor) -> None:
        if exact.shape != integers.shape:
            raise GraphError(
                f"node {self.node.name!r} has shape {list(integers.shape)}, the float node "
                f"{self.origin!r} that it stands for {list(exact.shape)}"
            )
        real = self.qparams.dequantize(integers)
        error = exact.double() - real
        unit = QParams.of(self.qparams.scale, 0.0, self.qparams.axis)
        step = unit.dequantize(torch.ones([1] * error.ndim))
        self.sums.signal += float(exact.double().square().sum())
        self.sums.noise += float(error.square().sum())
        self.sums.steps = max(self.sums.steps, float((error.abs() / step).max()))


@dataclass
class _Indices:
    """An output of indices, counted against the float model's."""

    node: str
    origin: str
    equal: int = 0
    total: int = 0

    def add(self, exact: torch.Tensor, integers: torch.Tensor) -> None:
        self.equal += int((exact == integers).sum())
        self.total += exact.numel()

    @property
    def percent(self) -> float:
        return 100.0 * self.equal / self.total


def compare(
    model: CanonicalModel,
    graph: IntGraph,
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    same_choices: bool = False,
    on_outputs: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Run both on `images` and measure every integer node that stands for a float node.

    images: uint8 `[N, C, H, W]`, or an iterable of such batches. Nodes without a scale, indices and
    the image itself have no row. same_choices: let the float model go on with the rows that the
    program's `topk` has chosen; otherwise a detector's queries, of which some differ or stand in
    another order, are compared with each other. on_outputs: given, for every image, the outputs by
    name of the float model and those of the program, in integers. progress: called as
    `progress("comparing", done, total)`. Raises `DataError` for images of another shape or type, or
    none; `GraphError` where the graph was not made from this model.
    """
    given = [images] if isinstance(images, torch.Tensor) else list(images)
    for batch in given:
        check_images(batch, graph.input.type.shape)
    singles = [image for batch in given for image in batch.split(1)]
    if not singles:
        raise DataError("no images to compare on")
    nodes = [node for node in graph if node.origin and not isinstance(node.op, Constant | Input)]
    indices = _index_nodes(model)
    pairs = [
        _Pair(n, n.qparams, n.origin)
        for n in nodes
        if n.qparams is not None and n.origin not in indices
    ]
    outputs = _output_pairs(model, graph)
    maps = {
        name: _Indices(graph.outputs[name], node.name)
        for name, node in model.outputs.items()
        if node.name in indices and name in graph.outputs
    }
    measured = (*pairs, *outputs.values())
    choices = {node.origin: node.name for node in nodes if isinstance(node.op, TopK)}
    wanted = {pair.origin for pair in (*measured, *maps.values())}
    given_on = model.outputs if on_outputs is not None else {}
    wanted |= {node.name for node in given_on.values()}
    unknown = wanted - {node.name for node in model.module.graph.nodes}
    if unknown:
        raise GraphError(
            f"the graph was not made from this model, which has no node {min(unknown)!r}"
        )
    for done, image in enumerate(singles):
        if progress is not None:
            progress("comparing", done, len(singles))
        integers = evaluate(graph, image, trace=True)
        followed = choices if same_choices else {}
        chosen = {origin: integers[name].to(torch.int64) for origin, name in followed.items()}
        exact = _float_values(model, image, wanted, chosen)
        for pair in measured:
            pair.add(exact[pair.origin], integers[pair.node.name])
        for map_ in maps.values():
            map_.add(exact[map_.origin], integers[map_.node])
        if on_outputs is not None:
            exact_outputs = {name: exact[node.name] for name, node in given_on.items()}
            on_outputs(exact_outputs, {name: integers[name] for name in graph.outputs})
    if progress is not None:
        progress("comparing", len(singles), len(singles))
    total = [pair.sums for pair in outputs.values()]
    return Comparison(
        tuple(map(_row, pairs)),
        _decibels(sum(s.signal for s in total), sum(s.noise for s in total)),
        {name: pair.sums.sqnr_db for name, pair in outputs.items()},
        len(singles),
        {name: map_.percent for name, map_ in maps.items()},
    )


def _index_nodes(model: CanonicalModel) -> set[str]:
    """The float nodes whose values are positions (topk: beside its values)."""
    calls = (node for node in model.module.graph.nodes if node.op == "call_function")
    return {n.name for n in calls if not getattr(n.meta["val"], "is_floating_point", bool)()}


def _output_pairs(model: CanonicalModel, graph: IntGraph) -> dict[str, _Pair]:
    """What stands for every output; for indices, the values that they were chosen from."""
    indices = _index_nodes(model)
    pairs = {}
    for name, node in model.outputs.items():
        found = graph[graph.outputs[name]] if name in graph.outputs else None
        origin = node.name
        while found is not None and (origin in indices or not origin) and found.inputs:
            found = graph[found.inputs[0]]
            origin = found.origin
        if found is not None and found.qparams is not None and not isinstance(found.op, Constant):
            pairs[name] = _Pair(found, found.qparams, origin)
    if not pairs:
        raise GraphError(
            f"the graph was not made from this model: its outputs are {', '.join(graph.outputs)}, "
            f"the model's {', '.join(model.output_names)}"
        )
    return pairs


def _row(pair: _Pair) -> NodeError:
    node = pair.node
    return NodeError(
        node.name,
        pair.origin,
        node.source,
        node.op.NAME,
        node.type.dtype,
        pair.sums.sqnr_db,
        pair.sums.steps,
    )


class _Keeper(fx.Interpreter):
    """Runs a float graph, with given choices of its topk nodes, and keeps the wanted values."""

    def __init__(
        self, module: fx.GraphModule, wanted: set[str], chosen: dict[str, torch.Tensor]
    ) -> None:
        super().__init__(module)
        self.wanted, self.chosen = wanted, chosen
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value: Any = super().run_node(n)
        if n.name in self.chosen:
            x = self.env[n.all_input_nodes[0]]
            value = x.gather(-1, self.chosen[n.name]), self.chosen[n.name]
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value


def _float_values(
    model: CanonicalModel, image: torch.Tensor, wanted: set[str], chosen: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    mean = torch.tensor(model.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(model.std, dtype=torch.float32)[:, None, None]
    keeper = _Keeper(model.module, wanted, chosen)
    with torch.no_grad():
        keeper.run((image.to(torch.float32) / 255 - mean) / std)
    return keeper.kept


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
