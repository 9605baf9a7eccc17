import pytest
import torch

import iqvit
from iqvit.errors import DataError, RecipeError
from iqvit.models.vit import ViT, ViTConfig

TINY = ViTConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_ratio=2, classes=4)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViT(TINY).eval()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_one_call_gives_a_program_that_runs(model, images):
    seen = []
    graph = iqvit.quantize(
        model, images, meta={"labels": ["a"]}, progress=lambda *step: seen.append(step)
    )
    scores = iqvit.run(graph, images)["logits"]
    assert scores.shape == (4, 4)
    assert not scores.is_floating_point()
    assert seen[0] == ("capturing", 0, 1)
    assert {stage for stage, _, _ in seen} == {"capturing", "observing", "rounding"}
    assert graph.meta["labels"] == ["a"]
    assert graph.meta["images"] == 4
    assert graph.meta["recipe"] == iqvit.Recipe().to_toml()
    assert graph.meta["mean"] == [0.485, 0.456, 0.406]


def test_the_forms_of_images_mean_the_same(model, images):
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    forms = [images, [images[:1], images[1:]], list(images), (image for image in images)]
    hashes = {iqvit.quantize(model, form, **half).hash for form in forms}
    assert len(hashes) == 1


def test_a_timm_model_states_its_own_normalisation(model, images):
    stated = ViT(TINY).eval()
    stated.load_state_dict(model.state_dict())
    stated.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    graph = iqvit.quantize(stated, images[:1])
    assert (graph.meta["mean"], graph.meta["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    graph = iqvit.quantize(stated, images[:1], mean=(0, 0, 0), std=(1, 1, 1))
    assert graph.meta["mean"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no calibration images"),
        (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "no calibration images"),
        (torch.zeros(1, 3, 16, 16), "before any normalisation"),
        (torch.zeros(16, 16, dtype=torch.uint8), r"uint8 \[N, C, H, W\]"),
        ([torch.zeros(3, s, s, dtype=torch.uint8) for s in (8, 16)], "several sizes"),
        (["photo.jpg"], "got str"),
    ],
)
def test_bad_images_are_refused(model, images, message):
    with pytest.raises(DataError, match=message):
        iqvit.quantize(model, images)


def test_a_bad_recipe_is_refused():
    with pytest.raises(RecipeError, match="weight_bits"):
        iqvit.Settings(weight_bits=9)
