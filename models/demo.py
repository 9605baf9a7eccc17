"""The model that `iqvit demo` runs on: a small ViT, trained in a minute on drawn images."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from iqvit.errors import ModelError
from iqvit.models.drawings import CLASSES, SIZE, make_images, write_images
from iqvit.models.float_model import FloatModel
from iqvit.models.vit import ViT, ViTConfig

__all__ = [
    "CLASSES",
    "CONFIG",
    "float_model",
    "make_images",
    "model",
    "train",
    "write_images",
]

CONFIG = ViTConfig(
    image_size=SIZE, patch_size=8, width=64, depth=3, heads=2, mlp_ratio=2, classes=len(CLASSES)
)
MEAN = STD = (0.5, 0.5, 0.5)


def model() -> tuple[ViT, dict[str, Any]]:
    """The untrained network and its preprocessing, as `FILE.py:FUNCTION` asks for."""
    return ViT(CONFIG), {"input_size": SIZE, "mean": MEAN, "std": STD, "labels": CLASSES}


def float_model(network: ViT, weights: str = "trained by the demo") -> FloatModel:
    """`network` (of `train`) with what is needed to feed it."""
    return FloatModel(
        module=network.eval(),
        name="demo",
        input_shape=(1, 3, SIZE, SIZE),
        mean=MEAN,
        std=STD,
        resize=(SIZE, SIZE),
        labels=CLASSES,
        weights=weights,
    )


def train(
    *,
    images: int = 2048,
    epochs: int = 9,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> ViT:
    """A ViT of `CONFIG` trained on `images` drawn images of the split "train"; in eval mode.

    AdamW with one cycle of the rate, and random mirroring. progress(step, steps, loss) is called
    after every step. The same arguments and number of threads give the same weights; torch's
    random state is left as it was. Raises ModelError for counts that make no step.
    """
    if epochs < 1 or not 1 <= batch <= images:
        raise ModelError(f"no training in {epochs} epochs of {images} images in batches of {batch}")
    data, labels = make_images("train", images, seed)
    steps = epochs * (images // batch)
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ViT(CONFIG).train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=steps, pct_start=0.15
        )
        for _ in range(epochs):
            for picked in torch.randperm(images).split(batch)[: images // batch]:
                x = (data[picked].float() / 255 - MEAN[0]) / STD[0]
                for axis in (2, 3):
                    x = x.flip(axis) if torch.rand(()) < 0.5 else x
                loss = functional.cross_entropy(network(x), labels[picked])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, steps, loss.item())
    return network.eval()
