"""Quantize: all stages from a float model and images to the integer program, in one call."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from iqvit.calibration.calibrate import Progress, calibrate
from iqvit.calibration.recipe import Recipe
from iqvit.canonical import CanonicalModel
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.convert import convert
from iqvit.errors import DataError
from iqvit.intgraph import IntGraph

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of ImageNet's RGB in 0..1: what a model was most likely trained with."""


def quantize(
    model: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    recipe: Recipe | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: Sequence[str] | None = None,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> IntGraph:
    """The integer program of `model`: capture, canonicalize, calibrate and convert.

    images: uint8 `[N, C, H, W]`, or an iterable of such batches or of single images `[C, H, W]`,
    all of one size, which becomes the size of the program's input. mean and std (of RGB in 0..1)
    are what the model's input was normalised with in training: where they are not given, those
    that a timm model states of itself (`pretrained_cfg`), otherwise ImageNet's; the program's
    `meta["mean"]` and `meta["std"]` say which. outputs: the names of those that are wanted
    of a model that returns several (a detector's `("logits", "pred_boxes")`); None: all of them.
    meta: plain JSON data that is kept in the program (`labels`, `preprocessing`). progress: called
    as `progress(stage, done, total)`.

    Raises `CaptureError`, `UnsupportedOp`, `DataError`, `RecipeError` or `OverflowProofError`.
    """
    canonical, batches = canonical_of(
        model, images, mean=mean, std=std, outputs=outputs, progress=progress
    )
    return quantize_canonical(canonical, batches, recipe, progress=progress, meta=meta)


def canonical_of(
    model: nn.Module,
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[CanonicalModel, list[torch.Tensor]]:
    """The first two stages of `quantize`, and its images as batches."""
    batches = as_batches(images)
    stated = getattr(model, "pretrained_cfg", None)
    known: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    mean = tuple(known.get("mean", IMAGENET[0]) if mean is None else mean)
    std = tuple(known.get("std", IMAGENET[1]) if std is None else std)
    channels, height, width = batches[0].shape[1:]
    report = progress if progress is not None else _silent
    report("capturing", 0, 1)
    size = (1, channels, height, width)
    captured = capture(model, size, mean=mean, std=std, outputs=outputs)
    canonical = canonicalize(captured)
    report("capturing", 1, 1)
    return canonical, batches


def quantize_canonical(
    canonical: CanonicalModel,
    images: torch.Tensor | Iterable[torch.Tensor],
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
    meta: Mapping[str, Any] | None = None,
) -> IntGraph:
    """The last two stages of `quantize`: calibrate and convert.

    The program's meta data is `meta` and what was done: mean, std, images (how many) and the
    recipe as TOML.
    """
    recipe = recipe if recipe is not None else Recipe()
    batches = as_batches(images)
    calibrated = calibrate(canonical, batches, recipe, progress=progress)
    return convert(canonical, calibrated, {**(meta or {}), **facts(canonical, batches, recipe)})


def facts(
    canonical: CanonicalModel, batches: Iterable[torch.Tensor], recipe: Recipe
) -> dict[str, Any]:
    """What a program says of how it was made."""
    return {
        "mean": list(canonical.mean),
        "std": list(canonical.std),
        "images": sum(len(batch) for batch in batches),
        "recipe": recipe.to_toml(),
    }


def as_batches(images: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Any of the forms of `images` as batches `[B, C, H, W]`; `DataError` for anything else."""
    given = [images] if isinstance(images, torch.Tensor) else list(images)
    if not given or any(isinstance(batch, torch.Tensor) and len(batch) == 0 for batch in given):
        raise DataError("no calibration images")
    for batch in given:
        if not isinstance(batch, torch.Tensor):
            raise DataError(f"images are torch tensors, got {type(batch).__name__}")
        if batch.dtype != torch.uint8 or batch.ndim not in (3, 4):
            raise DataError(
                "images are uint8 [N, C, H, W] as the file holds them, before any normalisation; "
                f"got {batch.dtype} {list(batch.shape)}"
            )
    batches = [batch if batch.ndim == 4 else batch[None] for batch in given]
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        raise DataError(f"images of several sizes: {', '.join(map(str, sorted(sizes)))}")
    return batches


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
