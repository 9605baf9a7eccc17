"""A trained detector as a folder: `config.json` and `model.safetensors`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from iqvit.errors import ModelError
from iqvit.files import write_atomically
from iqvit.models.rtdetr.config import PATCH, RTDetrConfig
from iqvit.models.rtdetr.loading import load_rtdetr_weights
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.vit import resample_positions
from iqvit.models.weights import Weights, read_weights

TASK = "detection"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
POSITIONS = "backbone.vit.pos_embed"


@dataclass(frozen=True)
class DetectorCard:
    """What must be known beside the weights: class names, and mean and std of RGB in 0..1."""

    labels: tuple[str, ...]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


def save_detector(folder: Path, model: RTDetr, card: DetectorCard) -> None:
    """Writes the folder; ModelError where `card` does not fit, IqvitError where it cannot."""
    _check(card, model.config, str(folder))
    content = {"task": TASK, "config": model.config.to_dict(), **vars(card)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors))
    write_atomically(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def load_detector(
    folder: Path,
    image_size: tuple[int, int] | None = None,
    *,
    change: Callable[[RTDetrConfig], RTDetrConfig] | None = None,
    weights: Weights | None = None,
) -> tuple[RTDetr, DetectorCard, tuple[str, ...]]:
    """The detector in eval mode, its card, and notes for the user.

    With another `image_size` (height, width) anchors and position embeddings are those of that
    size; the learned positions of a ViT are resampled. change: makes another config of the
    folder's, of the same weights. weights: instead of the folder's. ModelError for a folder, or
    weights, that do not fit.
    """
    trained, card = _read_config(folder / CONFIG)
    config = trained if image_size is None else replace(trained, image_size=image_size)
    config = config if change is None else change(config)
    weights = read_weights(folder / WEIGHTS) if weights is None else weights
    notes: tuple[str, ...] = ()
    if trained.image_size != config.image_size:
        weights = positions_for(weights, trained.image_size, config.image_size)
        shown = "{0[0]}x{0[1]}".format
        notes = (f"trained at {shown(trained.image_size)}, used at {shown(config.image_size)}",)
    model = RTDetr(config)
    notes = (*load_rtdetr_weights(model, weights), *notes)
    return model.eval(), card, notes


def positions_for(weights: Weights, trained: tuple[int, int], wanted: tuple[int, int]) -> Weights:
    """`weights` with a ViT's learned positions resampled from one image size to another.

    Sizes are (height, width) in pixels. Positions that are not of the size `trained` stay as they
    are: that they do not fit is said when they are loaded.
    """
    position: Tensor | None = weights.tensors.get(POSITIONS)
    old, new = ((size[0] // PATCH, size[1] // PATCH) for size in (trained, wanted))
    if position is None or position.ndim != 3 or position.shape[1] != 1 + old[0] * old[1]:
        return weights
    tensors = weights.tensors | {POSITIONS: resample_positions(position, old, new)}
    return replace(weights, tensors=tensors)


def _read_config(path: Path) -> tuple[RTDetrConfig, DetectorCard]:
    try:
        content: Any = json.loads(path.read_text())
        if content["task"] != TASK:
            raise ModelError(f"{path} is of a model for {content['task']}, not for {TASK}")
        config = RTDetrConfig.from_dict(content["config"])
        card = DetectorCard(*(tuple(content[key]) for key in ("labels", "mean", "std")))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path} is not the config.json of a detector: {reason}") from error
    _check(card, config, str(path))
    return config, card


def _check(card: DetectorCard, config: RTDetrConfig, place: str) -> None:
    if len(card.labels) != config.classes or len(card.mean) != 3 or len(card.std) != 3:
        raise ModelError(
            f"{place}: {len(card.labels)} labels for {config.classes} classes, mean {card.mean}, "
            f"std {card.std}; give one label a class, and three values each"
        )
