"""Quantisation-aware training: a model that computes in integers and learns by real gradients.

The forward pass is the integer program itself. In every step the present weights and scales are
converted (`iqvit.convert`) and the program's own operators run; there is no imitation of rounding
that could differ from what is deployed. The backward pass is that of the float graph: every real
function is evaluated at the reals that the program's integers stand for, its result is replaced by
what the program made of it, and the gradient goes straight through that rounding, except where the
integers saturated (`iqvit.training.integers`).

What learns: weights and biases of linears and convolutions, gains and biases of LayerNorms, and
step sizes if asked for. A weight that several nodes read learns in each by itself. Other constants
(positions, class tokens, anchors) stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iqvit.calibrated import Calibrated
from iqvit.calibration.calibrate import Progress, calibrate
from iqvit.calibration.quantize import canonical_of, facts
from iqvit.calibration.recipe import Recipe
from iqvit.canonical import CanonicalModel
from iqvit.interpret import check_images, evaluate_batch, run
from iqvit.intgraph import IntGraph
from iqvit.serialize import save
from iqvit.training.integers.forms import Forms
from iqvit.training.integers.frame import Frame, StepRules
from iqvit.training.integers.product import Product
from iqvit.training.integers.program import Program
from iqvit.training.integers.real import RealPass, integer_values

__all__ = ["PROGRAM", "StepRules", "ThroughIntegers", "through_integers"]

PROGRAM = "model.iqv"
"""The name of the program in the folder of a run."""
CPU_CHUNK = 4
"""Images that a CPU's caches hold the integers of."""


def through_integers(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    recipe: Recipe | None = None,
    rules: StepRules | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: Sequence[str] | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> "ThroughIntegers":
    """`iqvit.quantize`, but for the model that goes on learning; the arguments are the same.

    At first its program is the one that `iqvit.quantize` returns, bit for bit. Raises what that
    does.
    """
    canonical, batches = canonical_of(
        model, images, mean=mean, std=std, outputs=outputs, progress=progress
    )
    recipe = recipe or Recipe()
    calibrated = calibrate(canonical, batches, recipe, progress=progress)
    known = {**(meta or {}), **facts(canonical, batches, recipe)}
    return ThroughIntegers(canonical, calibrated, rules, known)


class ThroughIntegers(nn.Module):
    """uint8 images `[B, 3, H, W]` -> the outputs by name, float32 `[B, ...]`, with gradient.

    The values are what the integer outputs stand for; for an output of indices (a class map), those
    that it was chosen from. taps: nodes of the canonical graph whose values are given beside the
    outputs, under other names (indices as int64). At first the program is that of `calibrated`,
    bit for bit. `export` gives the program of the present weights, `integers` its outputs. The
    state dict holds all that training changes, and the calibrated scales. Raises `DataError` for
    images of another shape or type, and what `iqvit.convert` raises where training has led to a
    program that does not build.
    """

    def __init__(
        self,
        model: CanonicalModel,
        calibrated: Calibrated,
        rules: StepRules | None = None,
        meta: Mapping[str, Any] | None = None,
        taps: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.frame = Frame(model, calibrated, rules or StepRules(), meta or {}, taps or {})
        made = {node.name: self.frame.product(node) for node in self.frame.products}
        self.products = nn.ModuleDict(made)
        norms = {name: value.clone() for name, value in self.frame.norm_constants.items()}
        self.norms = nn.ParameterDict(norms)
        self.forms = Forms(self.frame.forms(), self.frame.rules.momentum)
        for name, value in self.frame.fixed.items():
            self.register_buffer(f"fixed_{name}", value.clone())
        self._kept: tuple[tuple[int, ...], Program] | None = None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """`(1, 3, H, W)`."""
        return self.frame.model.input_shape

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 `[B, 3, H, W]` -> float32 `[B, ...]` by name; see the class."""
        check_images(images, self.input_shape)
        # Autocasting would take the program's exact products for ordinary ones.
        with torch.autocast(images.device.type, enabled=False):
            program = self._program()
            chunk = CPU_CHUNK if images.device.type == "cpu" else None
            with torch.no_grad():
                trace = evaluate_batch(program.graph, images, True, chunk)
            found = self._real(program, trace)
        return {name: value.flatten(0, 1) for name, value in found.items()}

    def train(self, mode: bool = True) -> "ThroughIntegers":
        """As of any module; the program is converted anew."""
        self._kept = None
        return super().train(mode)

    def export(self) -> IntGraph:
        """The program of the present weights, as `iqvit.convert` makes it."""
        return self._program().graph

    def save(self, folder: Path) -> None:
        """Write the program of the present weights as model.iqv."""
        folder.mkdir(parents=True, exist_ok=True)
        save(self.export(), folder / PROGRAM)

    @torch.no_grad()
    def integers(self, images: Tensor) -> dict[str, Tensor]:
        """`iqvit.run` of the program of the present weights: its integer outputs."""
        with torch.autocast(images.device.type, enabled=False):
            return run(self.export(), images)

    @torch.no_grad()
    def _program(self) -> Program:
        """Converted anew in training; kept in evaluation, while nothing changes."""
        versions = tuple(t._version for t in (*self.parameters(), *self.buffers()))
        if self._kept is None or self.training or self._kept[0] != versions:
            products: Any = dict(self.products.items())
            made = self.frame.program(*self.forms.now(), products, dict(self.norms.items()))
            self._kept = versions, made
        return self._kept[1]

    def _real(self, program: Program, trace: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs with their gradients; ranges that move take in what they see."""
        model, results = self.frame.model, self.frame.results
        if not torch.is_grad_enabled():
            return torch.vmap(lambda one: integer_values(program, one, results))(trace)
        tensors = {name: getattr(self, f"fixed_{name}") for name in self.frame.fixed}
        tensors |= dict(self.norms.items())
        weights = {n: _rounded(part) for n, part in self.products.items()}
        factors = self.forms.now()[1]
        watched = {key: factors[key] for key in self.forms.moving} if self.training else {}

        def single(one: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            done = RealPass(
                model,
                program,
                one,
                tensors,
                weights,
                self.frame.form_of,
                self.forms.factor,
                watched,
            )
            return done.run(results), done.used

        found, used = torch.vmap(single)(trace)
        if watched:
            self.forms.see(used)
        return found


def _rounded(part: nn.Module) -> tuple[Tensor, Tensor]:
    if not isinstance(part, Product):
        raise TypeError(f"a Product has weights here, not a {type(part).__name__}")
    return part(), part.bias
