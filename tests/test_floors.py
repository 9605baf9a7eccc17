"""Where activations vanish: scales stay where integers can follow, and others are left alone."""

import functools

import pytest
import torch
from torch import nn

import iqvit
from iqvit.calibrated import Point
from iqvit.calibration.calibrate import observe
from iqvit.calibration.floors import coarser, raise_scales, reach
from iqvit.calibration.plan import make_plan
from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe, Settings
from iqvit.calibration.sweep import Sweep
from iqvit.inttype import QParams

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SHAPE = (1, 3, 8, 8)


class Tokens(nn.Module):
    """A convolution of a given size, LayerNorm, two linears and a sum."""

    def __init__(self, size: float, last: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 2, 2)
        self.norm = nn.LayerNorm(16, eps=1e-5)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 4)
        with torch.no_grad():
            nn.init.zeros_(self.conv.bias)
            self.conv.weight.mul_(size)
            nn.init.zeros_(self.first.bias)
            nn.init.zeros_(self.second.bias)
            self.second.weight.mul_(last)

    def forward(self, x):
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        return self.second(self.first(x) + x)


def tokens(size: float, last: float) -> Tokens:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens(size, last).eval()


@functools.cache
def canonical(size: float, last: float = 1.0) -> iqvit.CanonicalModel:
    return iqvit.canonicalize(iqvit.capture(tokens(size, last), SHAPE, **HALF))


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, *SHAPE[1:]), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("granularity", ["row", "channel", "tensor"])
@pytest.mark.parametrize(("size", "last"), [(1e-10, 1.0), (1e-6, 1.0), (0.0, 1.0), (1e-6, 0.0)])
def test_vanishing_activations_convert(size, last, granularity, images):
    model = canonical(size, last)
    graph = quantize_canonical(model, images, Recipe(Settings(granularity=granularity)))
    wanted = model((images[:1] / 255 - 0.5) / 0.5)["logits"]
    qparams = graph[graph.outputs["logits"]].qparams
    found = qparams.dequantize(iqvit.run(graph, images[:1])["logits"])
    # What a normalised value of 12 fractional bits tells.
    assert float((found - wanted).abs().max()) < 16 * 2.0**-12


def test_ordinary_scales_are_left_alone(images):
    model = canonical(1.0)
    plan = make_plan(model, Recipe())
    inputs = [(image[None] / 255 - 0.5) / 0.5 for image in images]
    observers = observe(model, plan, inputs, lambda *_: None)
    sweep = Sweep(model, plan, observers, Recipe())
    points, narrow = dict(sweep.points), dict(sweep.narrow)
    raise_scales(model, plan.group, points, narrow)
    assert points == sweep.points
    for node in model.module.graph.nodes:
        if node.op == "call_function" and "norm" in node.name:
            seen = max(-observers[node.name].least, observers[node.name].most)
            assert float(points[node.name].qparams.scale) == pytest.approx(1.5 * seen / 32767)


def test_floors_are_handed_on(images):
    model = canonical(1e-10)
    plan = make_plan(model, Recipe())
    inputs = [(image[None] / 255 - 0.5) / 0.5 for image in images]
    sweep = Sweep(model, plan, observe(model, plan, inputs, lambda *_: None), Recipe())
    scale = {name: float(point.qparams.scale) for name, point in sweep.points.items()}
    weight = float(tokens(1e-10, 1.0).first.weight.detach().abs().max())
    assert scale["norm_layer_norm"] == 2.0**-16
    assert scale["first_linear"] == pytest.approx(weight * 2.0**-32)
    assert scale["add"] == 2.0**-32


def test_a_coarser_form_keeps_zero():
    point = Point("uint8", QParams.of(0.01, 100))
    assert coarser(point, 0.005) is point
    made = coarser(point, 0.02)
    assert float(made.qparams.scale) == 0.02
    assert float(made.qparams.zero_point) == 50
    assert made.dtype == "uint8"


def test_a_range_of_nothing():
    assert reach(0.0) == 1.0
    assert reach(1e-20) == 1e-9
    assert reach(3.0) == 3.0
