"""Drawn images of eight classes, made from numbers alone: the data that `iqvit demo` runs on."""

import colorsys
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from iqvit.errors import DataError

CLASSES = ("disc", "ring", "square", "triangle", "cross", "stripes", "checks", "dots")
SPLITS = ("train", "calib", "test")
SIZE = 64
"""Pixels of a side."""
OVERSAMPLING = 2
HUE_SPREAD = 0.036
"""Standard deviation of a figure's hue around that of its class (1/8 apart): a hint, no answer."""
THIRD = 0.33
POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -1.0), (0.87, 0.5), (-0.87, 0.5)],
    "cross": [
        (-THIRD, -1.0),
        (THIRD, -1.0),
        (THIRD, -THIRD),
        (1.0, -THIRD),
        (1.0, THIRD),
        (THIRD, THIRD),
        (THIRD, 1.0),
        (-THIRD, 1.0),
        (-THIRD, THIRD),
        (-1.0, THIRD),
        (-1.0, -THIRD),
        (-THIRD, -THIRD),
    ],
}
"""Corners in a circle of radius 1."""

Colour = tuple[int, int, int]


def make_images(split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 RGB [count, 3, 64, 64] and int64 labels [count] (class i % 8 for image i).

    Each image is drawn from its own random stream of (seed, split, i), so that splits share no
    image and fewer images are the beginning of more. Raises DataError for an unknown split.
    """
    if split not in SPLITS or count < 1:
        raise DataError(f"no {count} drawn images of split {split!r}; splits are {SPLITS}")
    images = np.stack([_draw(split, i, seed) for i in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), _labels(count)


def write_images(folder: Path, split: str, count: int, seed: int = 0) -> list[Path]:
    """Writes `make_images` as PNG files CLASS_SPLIT_NUMBER.png; returns their paths, sorted.

    The folder appears only when it is complete. Raises DataError where it exists already.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already; the drawn images go into a new folder")
    images, labels = make_images(split, count, seed)
    names = [f"{label:02d}_{split}_{i:05d}.png" for i, label in enumerate(labels.tolist())]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(partial / name)
        partial.chmod(0o755)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder / name for name in names)


def _labels(count: int) -> Tensor:
    return torch.arange(count) % len(CLASSES)


def _draw(split: str, index: int, seed: int) -> np.ndarray:
    """One image, uint8 [64, 64, 3]: a figure on a gradient with clutter, and noise over all."""
    chance = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CLASSES)
    image = _background(chance)
    mask = _figure(CLASSES[label], chance)
    hue = label / len(CLASSES) + chance.normal(0, HUE_SPREAD)
    image.paste(_colour(chance, hue, 0.45), (0, 0), mask)
    noise = chance.normal(0, chance.uniform(2, 14), (SIZE, SIZE, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _colour(chance: np.random.Generator, hue: float, darkest: float = 0.25) -> Colour:
    saturation, value = chance.uniform(0.45, 0.95), chance.uniform(darkest, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


def _background(chance: np.random.Generator) -> Image.Image:
    first, last = (np.array(_colour(chance, chance.random())) for _ in range(2))
    angle = chance.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    share = np.clip(0.5 + x * math.cos(angle) + y * math.sin(angle), 0, 1)[..., None]
    image = Image.fromarray((first * (1 - share) + last * share).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(chance.integers(3, 8))):
        left, top = chance.uniform(-8, SIZE, 2)
        width, height = chance.uniform(3, 14, 2)
        box = (left, top, left + width, top + height)
        colour = _colour(chance, chance.random())
        kind = int(chance.integers(3))
        if kind == 0:
            end = (left + 4 * width - 28, top + 4 * height - 28)
            pen.line((left, top, *end), fill=colour, width=int(chance.integers(1, 4)))
        elif kind == 1:
            pen.ellipse(box, fill=colour)
        else:
            pen.rectangle(box, fill=colour)
    return image


def _figure(name: str, chance: np.random.Generator) -> Image.Image:
    """Where the figure is: 8-bit coverage of 64 x 64, of random place, size and angle."""
    side = OVERSAMPLING * SIZE
    radius = chance.uniform(14, 24) * OVERSAMPLING
    x, y = chance.uniform(radius, side - radius, 2)
    angle = chance.uniform(0, 2 * math.pi)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if name in POLYGONS:
        cos, sin = radius * math.cos(angle), radius * math.sin(angle)
        corners = [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in POLYGONS[name]]
        pen.polygon(corners, fill=255)
    elif name in ("disc", "ring"):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        hole = radius * chance.uniform(0.45, 0.65)
        if name == "ring":
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        period = chance.uniform(6, 9) * OVERSAMPLING
        mask = _texture(name, (x, y), radius, angle, period)
    return mask.resize((SIZE, SIZE), Image.Resampling.BOX)


def _texture(
    name: str, centre: tuple[float, float], radius: float, angle: float, period: float
) -> Image.Image:
    side = OVERSAMPLING * SIZE
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    x, y = x - centre[0], y - centre[1]
    along = np.sin(2 * math.pi / period * (x * math.cos(angle) + y * math.sin(angle)))
    across = np.sin(2 * math.pi / period * (y * math.cos(angle) - x * math.sin(angle)))
    textures = {"stripes": along > 0, "checks": along * across > 0, "dots": along + across > 0.9}
    inside = x * x + y * y < (1.1 * radius) ** 2
    return Image.fromarray(np.where(textures[name] & inside, 255, 0).astype(np.uint8))
