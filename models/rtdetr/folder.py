"""A trained detector as a folder: `config.json` and `model.safetensors`."""

import json
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
    folder: Path, image_size: tuple[int, int] | None = None
) -> tuple[RTDetr, DetectorCard, tuple[str, ...]]:
    """The detector in eval mode, its card, and notes for the user.

    With another `image_size` (height, width) anchors and position embeddings are those of that
    size; the learned positions of a ViT are resampled. ModelError for a folder that does not fit.
    """
    config, card = _read_config(folder / CONFIG)
    weights = read_weights(folder / WEIGHTS)
    notes: tuple[str, ...] = ()
    if image_size not in (None, config.image_size):
        trained, config = config.image_size, replace(config, image_size=image_size)
        weights = _resample(weights, trained, image_size)
        shown = "{0[0]}x{0[1]}".format
        notes = (f"trained at {shown(trained)}, used at {shown(image_size)}",)
    model = RTDetr(config)
    notes = (*load_rtdetr_weights(model, weights), *notes)
    return model.eval(), card, notes


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


def _resample(weights: Weights, trained: tuple[int, int], wanted: tuple[int, int]) -> Weights:
    position: Tensor | None = weights.tensors.get(POSITIONS)
    if position is None:
        return weights
    old, new = ((size[0] // PATCH, size[1] // PATCH) for size in (trained, wanted))
    tensors = weights.tensors | {POSITIONS: resample_positions(position, old, new)}
    return replace(weights, tensors=tensors)
