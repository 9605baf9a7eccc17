"""The sweep: node by node, the float values of all images beside those of the rounded model.

Every node is rounded with the inputs that the rounded model gives it, so later nodes make up for
what earlier ones lost (in biases, and in the rounding of weights).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from iqvit.calibrated import Calibrated, Point, Weight
from iqvit.calibration.equalise import channel_qparams, row_qparams, row_snap, search, snap
from iqvit.calibration.floors import least_scale, norm_steps, raise_scales, reach
from iqvit.calibration.observers import Observer, gelu_bound, span
from iqvit.calibration.plan import (
    LAYOUT,
    Plan,
    equalisable,
    known_range,
    one_sided,
    read_bounded,
    read_by_relu,
    reads_narrow,
    reads_symmetric,
    values,
)
from iqvit.calibration.recipe import Recipe, Settings
from iqvit.calibration.weights import column_scales, round_gptq, round_nearest, weight_scale
from iqvit.canonical import CanonicalModel, constant, op_of, product_groups
from iqvit.inttype import QParams

SAMPLED_ROWS = 4096  # rows of activations on which equalisation compares its candidates
Values = dict[fx.Node, list[torch.Tensor]]


class Sweep:
    """State of one sweep; `run` gives the `Calibrated`."""

    def __init__(
        self, model: CanonicalModel, plan: Plan, observers: dict[str, Observer], recipe: Recipe
    ) -> None:
        self.model, self.plan, self.observers, self.recipe = model, plan, observers, recipe
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.points: dict[str, Point] = {}
        self.narrow: dict[str, Point] = {}
        self.weights: dict[str, Weight] = {}
        self.notes: dict[str, str] = {}
        self._choose_points()

    def run(
        self, images: list[torch.Tensor], report: Callable[[str, int, int], None]
    ) -> Calibrated:
        """Sweep over the graph with the normalised images."""
        exact: Values = {}
        rounded: Values = {}
        # What no product depends on has nothing left to decide (the upsampled logits above all).
        nodes = _before_products(self.model)
        kept = set(nodes)
        remaining = {n: sum(user in kept for user in n.users) for n in nodes}
        for done, node in enumerate(nodes):
            report("rounding", done, len(nodes))
            if node.op == "placeholder":
                exact[node] = rounded[node] = images
            elif node.op == "get_attr":
                exact[node] = rounded[node] = [constant(node)] * len(images)
            elif node.op == "call_function":
                self._visit(node, exact, rounded)
            for source in node.all_input_nodes:
                remaining[source] -= 1
                if remaining[source] == 0:
                    del exact[source], rounded[source]
        report("rounding", len(nodes), len(nodes))
        return self._result(len(images))

    def _visit(self, node: fx.Node, exact: Values, rounded: Values) -> None:
        exact[node] = _evaluate(node, exact)
        operator = op_of(node).name
        if operator in ("linear", "conv2d"):
            outputs = self._product(node, exact, rounded)
        elif operator == "topk":
            outputs = _same_choices(node, exact, rounded)
        else:
            outputs = _evaluate(node, rounded, self._operands(node))
        linears = equalisable(self.model, self.plan, node)
        by_row = {self.by_row(linear) for linear in linears}
        static = all(self._settings(linear).granularity == "channel" for linear in linears)
        static = bool(linears) and static and self._may_have_channels(node)
        if len(by_row) == 1 and (static or (True in by_row and operator == "layer_norm")):
            self._equalise(node, linears, exact[node], True in by_row)
        point = self.points.get(node.name)
        rounded[node] = outputs if point is None else [_snap(x, point) for x in outputs]

    def _may_have_channels(self, node: fx.Node) -> bool:
        """Whether the 8-bit form of a value is its only one, and what makes it is no table."""
        if self.points[node.name].dtype != "uint8":
            return False
        source = node.all_input_nodes[0]
        return op_of(node).name == "layer_norm" or self.points[source.name].dtype == "int16"

    def _settings(self, node: fx.Node) -> Settings:
        return self.plan.settings[node.name]

    def _operands(self, node: fx.Node) -> dict[fx.Node, Point]:
        """The narrow forms that a node reads instead of the primary ones."""
        read = [s for s in node.all_input_nodes if reads_narrow(node, self._settings(node), s)]
        found = {s: self.narrow.get(self.plan.group.get(s.name, "")) for s in read}
        return {source: point for source, point in found.items() if point is not None}

    # Points

    def _choose_points(self) -> None:
        members: dict[str, list[fx.Node]] = {}
        for node in values(self.model):
            members.setdefault(self.plan.group[node.name], []).append(node)
        for key, nodes in members.items():
            if nodes[0].op == "placeholder":
                point = _image_point(self.model)
                self.points.update({node.name: point for node in nodes})
                continue
            primary, narrow = self._group_points(key, nodes)
            self.points.update({node.name: primary for node in nodes})
            if narrow is not None:
                self.narrow[key] = narrow
        raise_scales(self.model, self.plan.group, self.points, self.narrow)

    def _group_points(self, key: str, nodes: list[fx.Node]) -> tuple[Point, Point | None]:
        settings = next(
            (self._settings(n) for n in nodes if op_of(n).name not in LAYOUT),
            self._settings(nodes[0]),
        )
        # Of what only a ReLU reads, the negative values need no integers.
        seen = [self.observers[node.name] for node in nodes if not read_by_relu(node)]
        readers = [(u, n) for n in nodes for u in n.users if u.op == "call_function"]
        signed = any(reads_symmetric(u, self._settings(u), n) for u, n in readers) or not readers
        least = least_scale(nodes)
        narrow = _point8(seen, settings, signed, least)
        if any(read_bounded(self.plan, node) for node in nodes):
            bound = max(gelu_bound(observer) for observer in seen)
            narrow = Point("int8", QParams.of(bound / 127))
        if not self.plan.wide[key]:
            return narrow, None
        largest = max(max(-o.least, o.most) for o in seen)
        bits = self.plan.bits[key]
        known = known_range(nodes)
        largest = known if known is not None else reach(largest) * settings.headroom
        scale = max(largest / (2 ** ((bits or 16) - 1) - 1), least)
        primary = Point("int32" if bits > 16 else "int16", QParams.of(scale), bits)
        return primary, narrow if self.plan.narrow[key] else None

    def by_row(self, linear: fx.Node) -> bool:
        """Whether a linear reads 16-bit values and scales every row of them itself."""
        if op_of(linear).name != "linear" or self._settings(linear).granularity != "row":
            return False
        return self.points[linear.args[0].name].dtype == "int16"  # type: ignore[union-attr]

    def _equalise(
        self, node: fx.Node, linears: list[fx.Node], outputs: list[torch.Tensor], by_row: bool
    ) -> None:
        settings = self._settings(node)
        observer = self.observers[node.name]
        if observer.channel_least is None or observer.channel_most is None:
            return
        rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in outputs])
        picked = torch.randperm(len(rows), generator=self.generator)[:SAMPLED_ROWS]
        weights = [constant(linear.args[1]) for linear in linears]  # type: ignore[arg-type]
        bits = [self._settings(linear).weight_bits for linear in linears]
        # Of LayerNorms alone rows are scaled by channel.
        least = norm_steps(node).numpy() if by_row else 0.0
        span_, stacked = (observer.channel_least, observer.channel_most), torch.cat(weights)

        def candidate(alpha: float) -> QParams:
            if not by_row:
                return channel_qparams(*span_, stacked, alpha, settings.margin)
            found = row_qparams(*span_, stacked, alpha, settings.headroom)
            return QParams.of(np.maximum(found.scale, least), 0.0, axis=-1)

        qparams, alpha = search(rows[picked], weights, bits, settings.alpha, candidate, by_row)
        self.notes[node.name] = f"alpha {alpha:g}"
        key = self.plan.group[node.name]
        for member in values(self.model):
            if self.plan.group[member.name] == key:
                self.points[member.name] = Point("int16" if by_row else "uint8", qparams)

    # Products

    def _product(self, node: fx.Node, exact: Values, rounded: Values) -> list[torch.Tensor]:
        settings = self._settings(node)
        source, weight = node.args[0], constant(node.args[1])  # type: ignore[arg-type]
        point, inputs = self._operand(node, source, rounded)  # type: ignore[arg-type]
        columns = column_scales(weight, point.qparams, product_groups(node))
        flat = (weight * columns).reshape(weight.shape[0], -1)
        scale = weight_scale(flat, settings.weight_bits, settings.weight_granularity)
        if settings.weight_rounding == "gptq" and op_of(node).name == "linear":
            gram = _gram(inputs, columns.reshape(-1))
            q = round_gptq(flat, scale, settings.weight_bits, gram)
        else:
            q = round_nearest(flat, scale, settings.weight_bits)
        real = (q * scale).reshape(weight.shape) / columns
        bias = torch.zeros(weight.shape[0])
        if node.args[2] is not None:
            bias = constant(node.args[2]).clone()  # type: ignore[arg-type]
        call = _caller(node, real)
        outputs = [call(x, bias) for x in inputs]
        if settings.bias_correction:
            channel = -1 if op_of(node).name == "linear" else 1
            shift = _mean_error(exact[node], outputs, channel)
            bias = bias + shift
            moved = shift if channel == -1 else shift[:, None, None]
            outputs = [y + moved for y in outputs]
        self.weights[node.name] = Weight(
            q.reshape(weight.shape).to(torch.int8).numpy(),
            scale[:, 0].double().numpy(),
            bias.double().numpy(),
        )
        return outputs

    def _operand(
        self, node: fx.Node, source: fx.Node, rounded: Values
    ) -> tuple[Point, list[torch.Tensor]]:
        """What a product reads: the form that its weights see, and its rounded values."""
        primary = self.points[source.name]
        if not self.by_row(node):
            point = self.narrow.get(self.plan.group[source.name], primary)
            return point, [_snap(x, point) for x in rounded[source]]
        scale = torch.from_numpy(primary.qparams.scale.copy()).float()
        sided = one_sided(source, self.plan)
        least = self.observers[source.name].least
        return primary, [row_snap(x / scale, least / scale, sided) * scale for x in rounded[source]]

    def _result(self, images: int) -> Calibrated:
        calls = [n for n in self.model.module.graph.nodes if n.op == "call_function"]
        logits = {
            name.removesuffix(".logits"): _point8([o], Settings(), signed=True)
            for name, o in self.observers.items()
            if name.endswith(".logits")
        }
        narrow = {
            node.name: self.narrow[self.plan.group[node.name]]
            for node in values(self.model)
            if self.plan.group[node.name] in self.narrow
        }
        return Calibrated(
            self.points,
            narrow,
            logits,
            self.weights,
            {n.name: self.plan.approximation(n) for n in calls},
            {n.name: self.plan.probability_bits(n) for n in calls},
            {n.name: self._settings(n).fraction_bits for n in calls},
            frozenset(n.name for n in calls if self.by_row(n)),
            self.recipe.to_toml(),
            images,
            self.notes,
        )


def _before_products(model: CanonicalModel) -> list[fx.Node]:
    """The products with weights and all that they read, in order."""
    kept: set[fx.Node] = set()
    for node in reversed(model.module.graph.nodes):
        product = node.op == "call_function" and op_of(node).name in ("linear", "conv2d")
        if product or any(user in kept for user in node.users):
            kept.add(node)
    return [node for node in model.module.graph.nodes if node in kept]


def _evaluate(
    node: fx.Node, env: Values, narrow: dict[fx.Node, Point] | None = None
) -> list[torch.Tensor]:
    narrow = narrow or {}
    count = len(next(iter(env[source] for source in node.all_input_nodes)))

    def value(source: fx.Node, index: int) -> torch.Tensor:
        x = env[source][index]
        return _snap(x, narrow[source]) if source in narrow else x

    return [
        node.target(*fx.map_arg(node.args, lambda n, i=i: value(n, i)))  # type: ignore[operator]
        for i in range(count)
    ]


def _same_choices(node: fx.Node, exact: Values, rounded: Values) -> list[Any]:
    """What the rounded model has where the float model chose: the rows after a topk must be of the
    same queries on both sides, or biases would make up for the difference of queries."""
    source, dim = node.all_input_nodes[0], int(node.args[2])  # type: ignore[arg-type]
    indices = [pair[1] for pair in exact[node]]
    pairs = zip(rounded[source], indices, strict=True)
    return [(x.gather(dim, index), index) for x, index in pairs]


def _snap(x: torch.Tensor, point: Point) -> torch.Tensor:
    if not x.is_floating_point():
        return x
    return snap(x, point.qparams, *point.limits)


def _image_point(model: CanonicalModel) -> Point:
    """The pixels: `(q/255 - mean)/std` as `scale * (q - zero_point)`, the zero point fractional."""
    scales = [1 / (255 * s) for s in model.std]
    zeros = [255 * m for m in model.mean]
    if len(set(scales)) == 1 and len(set(zeros)) == 1:
        return Point("uint8", QParams.of(scales[0], zeros[0]))
    return Point("uint8", QParams.of(torch.tensor(scales).double().numpy(), zeros, axis=1))  # type: ignore[arg-type]


def _point8(seen: list[Observer], settings: Settings, signed: bool, least: float = 0.0) -> Point:
    """An 8-bit form: int8, zero point 0, where a product of two activations reads it; or uint8.

    least: its scale is at least this.
    """
    spans = [span(o, settings.observer, settings.percentile, signed) for o in seen]
    lo = min(s.lo for s in spans) * settings.margin
    hi = max(s.hi for s in spans) * settings.margin
    if signed:
        return Point("int8", QParams.of(max(reach(max(-lo, hi)) / 127, least)))
    scale = max(reach(hi - lo) / 255, least)
    return Point("uint8", QParams.of(scale, round(-lo / scale)))


def _gram(inputs: list[torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
    """Sum of x x^T over all rows, x in units of its own scales."""
    gram = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    for x in inputs:
        rows = x.reshape(-1, x.shape[-1]) / columns
        gram += (rows.T @ rows).double()
    return gram


def _caller(node: fx.Node, weight: torch.Tensor) -> Callable[..., torch.Tensor]:
    rest = node.args[3:]

    def call(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return node.target(x, weight, bias, *rest)  # type: ignore[operator]

    return call


def _mean_error(wanted: list[torch.Tensor], got: list[torch.Tensor], channel: int) -> torch.Tensor:
    sums = torch.zeros(wanted[0].shape[channel], dtype=torch.float64)
    rows = 0
    for a, b in zip(wanted, got, strict=True):
        error = (a - b).double().movedim(channel, -1).reshape(-1, len(sums))
        sums += error.sum(0)
        rows += len(error)
    return (sums / rows).float()
