"""Calibration: rounding of weights, equalisation, bias correction, and what it asks of images."""

import pytest
import torch
from torch import nn

import iqvit
from iqvit.calibration.calibrate import observe
from iqvit.calibration.equalise import channel_qparams, output_error, row_qparams, search
from iqvit.calibration.plan import make_plan
from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe, Rule, Settings
from iqvit.calibration.weights import round_gptq, round_nearest, weight_scale
from iqvit.errors import DataError
from iqvit.inttype import QParams
from iqvit.models.vit import ViT, ViTConfig

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TINY = ViTConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2, classes=4)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def canonical() -> iqvit.CanonicalModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return iqvit.canonicalize(iqvit.capture(ViT(TINY).eval(), (1, 3, 16, 16), **HALF))


# Weights


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_beats_rounding_to_nearest_on_correlated_inputs(bits, generator):
    weight = torch.randn(24, 80, generator=generator)
    x = torch.randn(400, 12, generator=generator) @ torch.randn(12, 80, generator=generator)
    x = x + 0.05 * torch.randn(400, 80, generator=generator)
    scale = weight_scale(weight, bits, "channel")

    def error(rounded: torch.Tensor) -> float:
        return float((x @ (rounded * scale - weight).T).square().sum())

    gptq, nearest = round_gptq(weight, scale, bits, x.T @ x), round_nearest(weight, scale, bits)
    most = 2 ** (bits - 1) - 1
    assert torch.equal(gptq, gptq.round())
    assert float(gptq.abs().max()) <= most
    assert error(gptq) < 0.3 * error(nearest)


def test_gptq_without_correlation_is_rounding_to_nearest(generator):
    weight = torch.randn(5, 70, generator=generator)
    scale = weight_scale(weight, 8, "channel")
    gram = torch.diag(torch.rand(70, generator=generator) + 0.1)
    assert torch.equal(round_gptq(weight, scale, 8, gram), round_nearest(weight, scale, 8))


def test_gptq_takes_inputs_that_are_never_there(generator):
    weight = torch.randn(5, 70, generator=generator)
    scale = weight_scale(weight, 8, "channel")
    assert torch.isfinite(round_gptq(weight, scale, 8, torch.zeros(70, 70))).all()


def test_weight_scales():
    weight = torch.tensor([[0.5, -1.0], [0.0, 0.0], [3.0, 0.25]])
    assert weight_scale(weight, 8, "channel")[:, 0].tolist() == pytest.approx(
        [1 / 127, 2 / 127, 3 / 127]
    )
    assert weight_scale(weight, 4, "tensor")[:, 0].tolist() == pytest.approx([3 / 7] * 3)
    assert weight_scale(torch.zeros(2, 2), 8, "channel")[:, 0].tolist() == pytest.approx(
        [1 / 127] * 2
    )


# What is read


class Rectified(nn.Module):
    """A convolution behind a ReLU; its own output may be read by others too."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.second(y.relu())
        return z + self.second(y) if self.shared else z


@pytest.mark.parametrize("shared", [False, True])
def test_before_a_relu_alone_all_levels_are_positive(shared, images):
    torch.manual_seed(0)
    captured = iqvit.capture(Rectified(shared).eval(), (1, 3, 16, 16), **HALF)
    graph = quantize_canonical(iqvit.canonicalize(captured), images)
    node = graph["first_conv2d"]
    assert node.type.dtype == "uint8"
    assert node.qparams is not None
    assert (float(node.qparams.zero_point) == 0) != shared


# Equalisation


def spread_rows(generator: torch.Generator) -> torch.Tensor:
    """Channels whose sizes differ a hundredfold, and are not centred."""
    size = torch.logspace(-1, 1, 32)
    return (torch.randn(500, 32, generator=generator) + 0.5) * size


@pytest.mark.parametrize("by_row", [True, False])
def test_a_scale_per_channel_lowers_the_error_of_what_reads_it(by_row, generator):
    rows = spread_rows(generator)
    weight = torch.randn(16, 32, generator=generator) / torch.logspace(-1, 1, 32)
    least, most = rows.amin(0).double(), rows.amax(0).double()
    low, high = float(least.min()), float(most.max())
    if by_row:
        one = QParams.of(max(-low, high) / 32767)
    else:
        one = QParams.of((high - low) / 255, round(-low / (high - low) * 255))

    def candidate(alpha: float) -> QParams:
        form = row_qparams if by_row else channel_qparams
        return form(least, most, weight, alpha, 1.0)

    found, alpha = search(rows, [weight], [8], -1.0, candidate, by_row)
    before = output_error(rows, [weight], [8], one, by_row)
    assert output_error(rows, [weight], [8], found, by_row) < 0.2 * before
    assert 0 <= alpha <= 1
    assert search(rows, [weight], [8], 0.25, candidate, by_row)[1] == 0.25


def spread_model() -> nn.Module:
    """A patch embedding, a LayerNorm whose channels differ a hundredfold, and its linear."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.Flatten(2), nn.Unflatten(2, (16,)), Tokens(), nn.Linear(32, 8)
    )
    with torch.no_grad():
        model[4].weight.div_(torch.logspace(-1, 1, 32))
    return model.eval()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        with torch.no_grad():
            self.norm.weight.copy_(torch.logspace(-1, 1, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2))


@pytest.mark.parametrize("by_row", [True, False])
def test_equalisation_lowers_the_output_error_of_a_spread_layer_norm(by_row, images):
    with torch.random.fork_rng():
        canonical = iqvit.canonicalize(iqvit.capture(spread_model(), (1, 3, 16, 16), **HALF))

    def decibels(**settings) -> float:
        recipe = Recipe(operators={"linear": {"weight_rounding": "nearest", **settings}})
        graph = iqvit.convert(canonical, iqvit.calibrate(canonical, images, recipe))
        return iqvit.compare(canonical, graph, images).sqnr_db

    if not by_row:
        assert decibels(granularity="channel") > decibels(granularity="tensor") + 6
        return
    searched = iqvit.calibrate(canonical, images)
    plain = iqvit.calibrate(canonical, images, Recipe(Settings(alpha=0.0)))
    ratios = [
        iqvit.compare(canonical, iqvit.convert(canonical, ranges), images).sqnr_db
        for ranges in (searched, plain)
    ]
    assert searched.notes != plain.notes
    assert ratios[0] >= ratios[1]


# Bias correction


def mean_error(canonical, images, correct: bool) -> torch.Tensor:
    settings = {"bias_correction": correct, "weight_bits": 4, "weight_rounding": "nearest"}
    recipe = Recipe(operators={"linear": settings})
    ranges = iqvit.calibrate(canonical, images, recipe)
    graph = iqvit.convert(canonical, ranges)
    qparams = graph[graph.outputs["logits"]].qparams
    got = qparams.dequantize(iqvit.run(graph, images)["logits"])
    exact = torch.cat([canonical((i / 255 - 0.5) / 0.5)["logits"] for i in images.split(1)])
    return (got - exact).mean(0) / float(qparams.scale)


def test_bias_correction_removes_the_mean_error(canonical, images):
    uncorrected = mean_error(canonical, images, False).abs()
    corrected = mean_error(canonical, images, True).abs()
    assert float(uncorrected.max()) > 100  # steps of the 16-bit output
    assert float(corrected.max()) < 0.1 * float(uncorrected.max())


# What it takes and gives


def test_the_same_seed_gives_the_same_program(canonical, images):
    hashes = [
        iqvit.convert(canonical, iqvit.calibrate(canonical, images, Recipe(seed=seed))).hash
        for seed in (3, 3)
    ]
    assert hashes[0] == hashes[1]


def test_the_global_random_state_plays_no_part(canonical, images):
    before = torch.random.get_rng_state()
    iqvit.calibrate(canonical, images[:1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_size_of_batches_plays_no_part(canonical, images):
    forms = [images, images.split(1), images.split(4), list(images)]
    programs = {iqvit.convert(canonical, iqvit.calibrate(canonical, form)).hash for form in forms}
    assert len(programs) == 1


def test_one_image_is_enough(canonical, images):
    ranges = iqvit.calibrate(canonical, images[:1])
    assert ranges.images == 1
    graph = iqvit.convert(canonical, ranges)
    assert iqvit.compare(canonical, graph, images[:1]).sqnr_db > 25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no calibration images"),
        (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "no calibration images"),
        ([torch.zeros(0, 3, 16, 16, dtype=torch.uint8)], "no calibration images"),
        (torch.zeros(1, 3, 16, 16), r"uint8 \[B, 3, 16, 16\], got torch.float32"),
        ([torch.zeros(1, 3, 8, 16, dtype=torch.uint8)], r"got torch.uint8 \[1, 3, 8, 16\]"),
        ([torch.zeros(16, 16, dtype=torch.uint8)], r"uint8 \[B, 3, 16, 16\]"),
        (["photo.jpg"], "got str"),
    ],
)
def test_bad_images_are_refused(canonical, given, message):
    with pytest.raises(DataError, match=message):
        iqvit.calibrate(canonical, given)


def test_progress_is_told(canonical, images):
    steps: list[tuple[str, int, int]] = []
    iqvit.calibrate(canonical, images[:2], progress=lambda *step: steps.append(step))
    assert steps[:3] == [("observing", 0, 2), ("observing", 1, 2), ("observing", 2, 2)]
    done = [step for step in steps if step[0] == "rounding"]
    assert done[-1][1] == done[-1][2]
    # The last product is the output: all nodes but the output's own.
    assert done[-1][2] == len(list(canonical.module.graph.nodes)) - 1
    assert [step[1] for step in done] == sorted(step[1] for step in done)


def test_the_recipe_goes_along(canonical, images):
    recipe = Recipe(rules=(Rule("blocks.0.*", {"weight_bits": 7}),), seed=9)
    ranges = iqvit.calibrate(canonical, images[:1], recipe)
    assert ranges.recipe_text == recipe.to_toml()
    largest = {name: int(abs(weight.q).max()) for name, weight in ranges.weights.items()}
    assert {most for name, most in largest.items() if name.startswith("blocks_0")} == {63}
    assert {most for name, most in largest.items() if not name.startswith("blocks_0")} == {127}


def test_values_that_share_integers_share_the_observer(canonical, images):
    # Queries, keys and values are views of one linear's output: its observer counts for all.
    recipe = Recipe(operators={"linear": {"observer": "percentile"}})
    plan = make_plan(canonical, recipe)
    x = (images[:1] / 255 - 0.5) / 0.5
    with torch.no_grad():
        observers = observe(canonical, plan, [x], lambda *_: None)
    group = plan.group["blocks_0_attn_qkv_linear"]
    members = [name for name, key in plan.group.items() if key == group]
    assert len(members) > 1
    assert all(observers[name].counts is not None for name in members)
    assert observers[next(iter(plan.group))].counts is None
