"""Vision transformers that others wrote, unmodified: from the float model to a library.

The slow tests make them at full size, with random weights.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import iqvit
from iqvit.tvm_backend.compile import compile as compile_graph
from iqvit.tvm_backend.runtime import load

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 32, "patch_size": 8}


def timm_model(name: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, **options)


def small_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128)


def torchvision_vit_b_16() -> nn.Module:
    from torchvision.models import vit_b_16

    return vit_b_16(weights=None)


def transformers_model(**options) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(transformers.ViTConfig(**options))


SMALL_MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": partial(timm_model, "vit_tiny_patch16_224", **SMALL),
    "distilled": partial(timm_model, "deit_tiny_distilled_patch16_224", **SMALL),
    "layer scale": partial(timm_model, "deit3_small_patch16_224", **SMALL),
    "registers": partial(timm_model, "vit_small_patch14_reg4_dinov2", **SMALL),
    "average pooling": partial(timm_model, "vit_little_patch16_reg4_gap_256", **SMALL),
    "torchvision": small_torchvision,
    "transformers": partial(
        transformers_model,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=10,
    ),
}
# Name: how to make it, and the size of its images.
FULL_MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm vit_tiny_patch16_224": (partial(timm_model, "vit_tiny_patch16_224"), 224),
    "timm deit_small_patch16_224": (partial(timm_model, "deit_small_patch16_224"), 224),
    "timm deit_tiny_distilled_patch16_224": (
        partial(timm_model, "deit_tiny_distilled_patch16_224"),
        224,
    ),
    "timm deit3_small_patch16_224": (partial(timm_model, "deit3_small_patch16_224"), 224),
    "timm vit_small_patch14_reg4_dinov2": (
        partial(timm_model, "vit_small_patch14_reg4_dinov2", img_size=224, num_classes=1000),
        224,
    ),
    "timm vit_little_patch16_reg4_gap_256": (
        partial(timm_model, "vit_little_patch16_reg4_gap_256"),
        256,
    ),
    "torchvision vit_b_16": (torchvision_vit_b_16, 224),
    "transformers ViTForImageClassification": (partial(transformers_model, num_labels=1000), 224),
}
LEAST_DB = 25.0
LEAST_NODE_DB = 15.0


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with seeded weights, none of which an initialisation left at zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


def random_images(count: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def make_program(model: nn.Module, size: int) -> tuple[iqvit.CanonicalModel, iqvit.IntGraph]:
    canonical = iqvit.canonicalize(iqvit.capture(model, (1, 3, size, size), **IMAGENET))
    ranges = iqvit.calibrate(canonical, random_images(2, size, seed=1))
    return canonical, iqvit.convert(canonical, ranges)


def assert_close(found: iqvit.Comparison) -> None:
    worst = found.worst(1)[0]
    assert found.sqnr_db > LEAST_DB
    assert worst.sqnr_db > LEAST_NODE_DB, worst


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models_become_integer_programs(name):
    model = seeded(SMALL_MODELS[name])
    canonical, graph = make_program(model, 32)
    images = random_images(2, 32, seed=2)
    scores = iqvit.run(graph, images)["logits"]
    with torch.no_grad():
        real = model(torch.zeros(1, 3, 32, 32))
    real = real if isinstance(real, torch.Tensor) else real["logits"]
    assert scores.shape == (2, real.shape[1])
    assert not scores.is_floating_point()
    assert iqvit.cost(graph).wide_macs == 0
    assert_close(iqvit.compare(canonical, graph, images))


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_MODELS)
def test_full_models_convert_run_and_compile(name: str, tmp_path: Path):
    make, size = FULL_MODELS[name]
    canonical, graph = make_program(seeded(make), size)
    images = random_images(2, size, seed=2)

    found = iqvit.compare(canonical, graph, images)
    print(f"\n{name}: {found.sqnr_db:.1f} dB")
    for row in found.rows:
        print(f"  {row.sqnr_db:7.1f} dB  {row.largest_steps:9.1f} steps  {row.op:12} {row.node}")
    assert_close(found)

    compile_graph(graph, tmp_path / "artifact", "host")
    library = load(tmp_path / "artifact")
    expected, got = iqvit.run(graph, images), library(images)
    assert list(got) == list(expected)
    for output, value in expected.items():
        assert torch.equal(torch.as_tensor(got[output]), value)
