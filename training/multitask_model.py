"""The multi-task model that training begins with: fresh on a trained encoder, or a trained one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from iqvit.errors import ModelError
from iqvit.models import from_multitask
from iqvit.models.multitask.config import MultitaskConfig, multitask_vit_tiny
from iqvit.models.multitask.folder import CONFIG, TASK, WEIGHTS, Triple, changed, load_multitask
from iqvit.models.multitask.model import Multitask
from iqvit.models.rtdetr.config import PATCH, PyramidConfig
from iqvit.models.rtdetr.folder import TASK as DETECTION
from iqvit.models.rtdetr.folder import load_detector
from iqvit.models.segmenter_folder import TASK as SEGMENTATION
from iqvit.models.segmenter_folder import load_segmenter
from iqvit.models.vit import EPS
from iqvit.models.weights import read_weights
from iqvit.training.start import Start, drawn_from, fresh_name, require_rate
from iqvit.training.transfer import carry_tensors

SPEC = "multitask:"
SHOWN = 8
"""Weights that a note names."""


@dataclass(frozen=True)
class _Trained:
    """Sizes and weights of a trained model, under a multi-task model's names."""

    config: MultitaskConfig
    tensors: dict[str, Tensor]
    mean: Triple
    std: Triple
    notes: tuple[str, ...]


def fresh_multitask(
    spec: str,
    *,
    weights: Path | None,
    classes: int,
    box_classes: int,
    size: tuple[int, int] | None = None,
    queries: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[Multitask]:
    """The model that `spec` names (multitask:vit_tiny, ...), for so many classes.

    weights: a file with timm's names for a ViT, or the whole model's. What they do not hold is
    drawn from `seed`. size (height, width) in pixels and queries: instead of the preset's. Raises
    ModelError for an unknown name or weights that do not fit.
    """
    require_rate(drop_path)
    name = fresh_name(spec, SPEC, f"{SPEC}NAME, such as {SPEC}vit_tiny")
    read = None if weights is None else read_weights(weights)
    with drawn_from(seed):
        made = from_multitask.load(
            name,
            image_size=size,
            classes=classes,
            box_classes=box_classes,
            weights=read,
            drop_path=drop_path,
            queries=queries,
        )
    source = "random" if weights is None else weights.name
    return Start(made.model, spec, source, made.card.mean, made.card.std, made.notes)


def continued_multitask(
    folder: Path,
    *,
    classes: int,
    box_classes: int,
    size: tuple[int, int] | None = None,
    queries: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[Multitask]:
    """A multi-task model that begins with what `folder` holds.

    That is a trained multi-task model, a segmenter, whose encoder and decoder are taken, or a
    detector with a ViT, taken whole. Every weight whose shape is that of the new model is kept, the
    rest is drawn from `seed`, and noted. Raises ModelError.
    """
    require_rate(drop_path)
    read = {TASK: _multitask, SEGMENTATION: _segmenter, DETECTION: _detector}
    kind = _task_of(folder)
    if kind not in read:
        raise ModelError(f"{folder} is of a model for {kind}; it is one of {', '.join(read)}")
    trained = read[kind](folder, size)
    detector = replace(
        trained.config.detector,
        classes=box_classes,
        queries=queries or trained.config.detector.queries,
    )
    wanted = replace(trained.config, detector=detector, classes=classes)
    with drawn_from(seed):
        model = Multitask(changed(wanted, drop_path=drop_path))
    notes = (*trained.notes, *_shortened(carry_tensors(trained.tensors, model)))
    name = f"{SPEC}{folder.name}"
    return Start(model.eval(), name, WEIGHTS, trained.mean, trained.std, notes)


def _multitask(folder: Path, size: tuple[int, int] | None) -> _Trained:
    model, card, notes = load_multitask(folder, image_size=size)
    return _Trained(model.config, model.state_dict(), card.mean, card.std, notes)


def _segmenter(folder: Path, size: tuple[int, int] | None) -> _Trained:
    loaded = load_segmenter(folder, size)
    sizes, meta = loaded.segmenter.config, loaded.meta
    if sizes.patch_size != PATCH or sizes.eps != EPS:
        raise ModelError(
            f"{folder}: the segmenter has patches of {sizes.patch_size} pixels and LayerNorms with "
            f"an epsilon of {sizes.eps}; a multi-task model has {PATCH} and {EPS}"
        )
    backbone = PyramidConfig(sizes.width, sizes.depth, sizes.heads, sizes.mlp_ratio)
    preset = multitask_vit_tiny(
        classes=sizes.classes, box_classes=1, image_size=sizes.image_size, backbone=backbone
    )
    config = replace(
        preset,
        decoder=sizes.decoder,
        decoder_depth=sizes.decoder_depth,
        decoder_heads=sizes.decoder_heads,
        normalise=sizes.normalise,
    )
    parts = {"encoder.": "detector.backbone.vit.", "decoder.": "segmentation."}
    tensors = _renamed(loaded.segmenter.state_dict(), parts)
    return _Trained(config, tensors, meta.mean, meta.std, loaded.notes)


def _detector(folder: Path, size: tuple[int, int] | None) -> _Trained:
    detector, card, notes = load_detector(folder, size)
    config = MultitaskConfig(detector.config, classes=2)  # the classes are those of the new model
    tensors = _renamed(detector.state_dict(), {"": "detector."})
    return _Trained(config, tensors, card.mean, card.std, notes)


def _renamed(tensors: dict[str, Tensor], parts: dict[str, str]) -> dict[str, Tensor]:
    return {
        new + name.removeprefix(old): tensor
        for name, tensor in tensors.items()
        for old, new in parts.items()
        if name.startswith(old)
    }


def _task_of(folder: Path) -> str:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not the config.json of a trained model: {error}") from error
    return str(content.get("task")) if isinstance(content, dict) else "nothing"


def _shortened(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Of a whole head only the first names."""
    return tuple(
        note if len(names := note.split(", ")) <= SHOWN
        else f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
        for note in notes
    )  # fmt: skip
