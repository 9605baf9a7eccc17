"""What never changes while a model learns: its float graph, and what calibration decided."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from iqvit.calibrated import Calibrated, Point, Weight
from iqvit.calibration.plan import known_range, make_plan, values
from iqvit.calibration.recipe import parse_recipe
from iqvit.calibration.weights import column_scales
from iqvit.canonical import CanonicalModel, arguments, constant, op_of, product_groups
from iqvit.errors import IqvitError
from iqvit.training.integers.forms import Form
from iqvit.training.integers.product import Product
from iqvit.training.integers.program import Program, make_program
from iqvit.training.integers.real import chosen_from

STEPS = ("followed", "learned")
RANGES = ("fixed", "moving")
BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class StepRules:
    """How step sizes change.

    steps: "followed", those of weights are set by the largest weight of each channel and those of
    activations by their ranges; or "learned" by gradient (LSQ), those of weights and of 8-bit
    activations. ranges, of activations whose steps are not learned: "fixed" as calibrated, or
    "moving" with the largest values seen, averaged with `momentum`.
    """

    steps: str = "followed"
    ranges: str = "fixed"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.steps not in STEPS:
            raise IqvitError(f"step sizes are {' or '.join(STEPS)}, not {self.steps!r}")
        if self.ranges not in RANGES:
            raise IqvitError(f"ranges are {' or '.join(RANGES)}, not {self.ranges!r}")
        if not 0 <= self.momentum < 1:
            raise IqvitError(f"the momentum of ranges is in 0..1, not {self.momentum}")


class Frame:
    """A calibrated model and its plan; shared by all copies of what learns.

    results: the float nodes whose values are given, by name: the outputs (of indices, what they
    were chosen from) and the taps. Keys of forms: the group of a value, "GROUP:narrow" for what
    matrix products read of it, and "NODE:logits" inside an attention.
    """

    def __init__(
        self,
        model: CanonicalModel,
        calibrated: Calibrated,
        rules: StepRules,
        meta: Mapping[str, Any],
        taps: Mapping[str, str],
    ) -> None:
        # Conversion reads constants from the graph's own module, so this one gets the learnt ones.
        self.model = replace(model, module=copy.deepcopy(model.module))
        self.calibrated, self.rules, self.meta = calibrated, rules, dict(meta)
        self.plan = make_plan(self.model, parse_recipe(calibrated.recipe_text))
        group = self.plan.group
        self.form_of = dict(group)
        self.form_of |= {f"{name}_narrow": f"{key}:narrow" for name, key in group.items()}
        self.form_of |= {f"{name}_logits": f"{name}:logits" for name in calibrated.logits}
        self.results = {name: chosen_from(node) for name, node in self.model.outputs.items()}
        nodes = {node.name: node for node in self.model.module.graph.nodes}
        for name, tapped in taps.items():
            if tapped not in nodes or name in self.results:
                raise IqvitError(f"the tap {name!r} of node {tapped!r}: no such node, or an output")
            self.results[name] = nodes[tapped]

    def __deepcopy__(self, memo: Any) -> "Frame":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a model that learns through integers is saved by its state dict")

    @cached_property
    def products(self) -> list[fx.Node]:
        """The linears and convolutions, in order."""
        return self._calls("linear", "conv2d")

    @cached_property
    def norm_constants(self) -> dict[str, Tensor]:
        """Gains and biases of the LayerNorms by the names of their constants."""
        sources = [arguments(n)[place] for n in self._calls("layer_norm") for place in "wb"]
        return {source.name: constant(source) for source in sources if source is not None}

    @cached_property
    def fixed(self) -> dict[str, Tensor]:
        """The constants that others than products and LayerNorms read, by name."""
        learning = {*self.products, *self._calls("layer_norm")}
        nodes = [n for n in self.model.module.graph.nodes if n.op == "get_attr"]
        return {n.name: constant(n) for n in nodes if not learning.issuperset(n.users)}

    def product(self, node: fx.Node) -> Product:
        """The weights of a linear or convolution, as calibrated."""
        weight = constant(node.args[1])  # type: ignore[arg-type]
        key, settings = self._read_key(node), self.plan.settings[node.name]
        return Product(
            weight,
            self.calibrated.weights[node.name],
            column_scales(weight, self._calibrated_points[key].qparams, product_groups(node)),
            settings.weight_bits,
            shared=settings.weight_granularity == "tensor",
            learned=self.rules.steps == "learned",
        )

    def forms(self) -> dict[str, Form]:
        """All forms, with those whose scales learn or move."""
        still = self._still()
        found = {}
        for key, point in self._calibrated_points.items():
            learned = self.rules.steps == "learned" and point.dtype in BYTES
            moving = self.rules.ranges == "moving" and not learned
            group = key.partition(":")[0]
            free = group not in still
            found[key] = Form(point, learned and free, moving and free)
        return found

    def program(
        self,
        points: Mapping[str, Point],
        factors: Mapping[str, float],
        products: Mapping[str, Product],
        norms: Mapping[str, Tensor],
    ) -> Program:
        """The conversion of the present forms and weights."""
        for name, value in norms.items():
            getattr(self.model.module, name).copy_(value.detach())
        weights: dict[str, Weight] = {
            node.name: products[node.name].rounded(factors[self._read_key(node)])
            for node in self.products
        }
        base, form_of = self.calibrated, self.form_of
        present = replace(
            base,
            points={name: points[form_of[name]] for name in base.points},
            narrow={name: points[form_of[f"{name}_narrow"]] for name in base.narrow},
            logits={name: points[form_of[f"{name}_logits"]] for name in base.logits},
            weights=weights,
        )
        return make_program(self.model, present, self.meta)

    @cached_property
    def _calibrated_points(self) -> dict[str, Point]:
        base, form_of = self.calibrated, self.form_of
        points = {form_of[name]: point for name, point in base.points.items()}
        points |= {form_of[f"{name}_narrow"]: point for name, point in base.narrow.items()}
        return points | {form_of[f"{name}_logits"]: point for name, point in base.logits.items()}

    def _still(self) -> set[str]:
        """Groups whose range is known, the image's above all."""
        members: dict[str, list[fx.Node]] = {}
        for node in values(self.model):
            members.setdefault(self.plan.group[node.name], []).append(node)
        return {
            key
            for key, nodes in members.items()
            if known_range(nodes) is not None or any(n.op == "placeholder" for n in nodes)
        }

    def _read_key(self, node: fx.Node) -> str:
        """The form in which the weights of a product see its input."""
        source, base = node.all_input_nodes[0].name, self.calibrated
        narrow = source in base.narrow and node.name not in base.rows
        return self.form_of[f"{source}_narrow" if narrow else source]

    def _calls(self, *operators: str) -> list[fx.Node]:
        nodes = [n for n in self.model.module.graph.nodes if n.op == "call_function"]
        return [node for node in nodes if op_of(node).name in operators]
