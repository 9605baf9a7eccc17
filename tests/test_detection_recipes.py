"""The recipes of benchmarks/recipes/detection on a small detector: what each of them changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import iqvit
from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe, Rule, Settings, load_recipe
from iqvit.errors import RecipeError
from iqvit.intgraph import IntGraph
from iqvit.models.initialise import normalise_layers
from iqvit.models.rtdetr.config import ResNetConfig, RTDetrConfig
from iqvit.models.rtdetr.model import Detections, RTDetr
from iqvit.ops import Attention, DeformAttention

SIZE = (64, 96)
FOLDER = Path(__file__).parent.parent / "benchmarks" / "recipes" / "detection"
UNIT = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    coarse = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    return (255 * smooth).to(torch.uint8)


@pytest.fixture(scope="module")
def canonical(images) -> iqvit.CanonicalModel:
    config = RTDetrConfig(
        image_size=SIZE,
        classes=3,
        backbone=ResNetConfig(stem=8, channels=(8, 8, 8, 16), depths=(1, 1, 1, 1)),
        width=16,
        heads=2,
        encoder_ffn=16,
        rep_blocks=1,
        queries=8,
        decoder_layers=2,
        decoder_ffn=16,
        points=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Detections(RTDetr(config), 10).eval()
        normalise_layers(model, images / 255, {"*dec_bbox_head.*": 0.3})
    return iqvit.canonicalize(iqvit.capture(model, (1, 3, *SIZE), **UNIT))


@pytest.fixture(scope="module")
def made(canonical, images):
    """The program of a recipe, made once."""
    known: dict[str, IntGraph] = {}

    def program(name: str) -> IntGraph:
        if name not in known:
            known[name] = quantize_canonical(
                canonical, images[:2], load_recipe(FOLDER / f"{name}.toml")
            )
        return known[name]

    return program


def sampling(graph: IntGraph) -> list[DeformAttention]:
    return [node.op for node in graph if isinstance(node.op, DeformAttention)]


def boxes(graph: IntGraph) -> list[int]:
    """The largest integers of box logits, and of the fractions that the decoder reads."""
    names = ("detector_decoder_add", "detector_decoder_add_2", "detector_decoder_sigmoid_1")
    return [graph[name].type.hi for name in names]


def test_the_default(made):
    graph = made("default")
    assert graph.hash == made("default").hash
    assert {(op.fraction, op.full) for op in sampling(graph)} == {(8, 32767)}
    assert min(boxes(graph)) > 4096


@pytest.mark.parametrize(("bits", "most"), [(12, 2047), (8, 255)])
def test_the_width_of_boxes(made, images, bits, most):
    graph = made(f"boxes_{bits}")
    found = boxes(graph)
    assert max(found) <= most
    assert min(found) > most / 8
    exact = read_boxes(made("default"), images[2:])
    assert float((read_boxes(graph, images[2:]) - exact).abs().max()) < (0.02 if bits > 8 else 0.5)


def read_boxes(graph: IntGraph, images: torch.Tensor) -> torch.Tensor:
    """The boxes of all queries before the last layer, as reals."""
    qparams = graph["detector_decoder_sigmoid_1"].qparams
    assert qparams is not None
    traced = iqvit.run(graph, images, trace=True)
    return qparams.dequantize(traced["detector_decoder_sigmoid_1"]).sort(1).values


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fraction_bits(made, bits):
    assert {op.fraction for op in sampling(made(f"fraction_{bits}"))} == {bits}


def test_widths_of_probabilities(made):
    assert {op.full for op in sampling(made("samples_8"))} == {255}
    attentions = [n.op.bits for n in made("attention_16") if isinstance(n.op, Attention)]
    assert set(attentions) == {16}
    assert {op.full for op in sampling(made("attention_16"))} == {32767}


def test_the_width_of_scores(made, images):
    graph = made("scores_8")
    scores = [node for node in graph if "score_head" in node.name and node.origin]
    assert len(scores) == 2
    assert {node.type.dtype for node in scores} <= {"int8", "uint8"}
    assert iqvit.run(graph, images[2:])["scores"].shape == (1, 10)


def test_every_recipe_of_the_folder_builds(made, images):
    assert len(list(FOLDER.glob("*.toml"))) == 10
    for path in FOLDER.glob("*.toml"):
        graph = made(path.stem)
        assert sorted(iqvit.run(graph, images[2:])) == ["boxes", "labels", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["portable", "host"])
def test_the_library_gives_the_same_bits(canonical, images, target, tmp_path):
    tvm_backend = pytest.importorskip("iqvit.tvm_backend")
    parts = [load_recipe(FOLDER / f"{n}.toml") for n in ("boxes_12", "scores_8")]
    narrow = {"deformable_attention": {"fraction_bits": 2, "probability_bits": 8}}
    recipe = Recipe(operators=narrow, rules=tuple(rule for part in parts for rule in part.rules))
    graph = quantize_canonical(canonical, images[:2], recipe)
    expected = iqvit.run(graph, images)
    found = tvm_backend.load(tvm_backend.compile(graph, tmp_path / "made", target))(images)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_widths_that_an_operator_cannot_have(canonical, images):
    recipe = Recipe(operators={"layer_norm": {"bits": 12}})
    with pytest.raises(RecipeError, match=r"bits = 12 is for add, conv2d, linear, sigmoid, tanh"):
        quantize_canonical(canonical, images[:1], recipe)
    rules = (Rule("*decoder:add", {"bits": 12}), Rule("nowhere:add", {"bits": 12}))
    with pytest.raises(RecipeError, match="no node matches 'nowhere:add'"):
        quantize_canonical(canonical, images[:1], replace(Recipe(Settings()), rules=rules))
