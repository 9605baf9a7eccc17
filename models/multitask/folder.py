"""A trained multi-task model as a folder: `config.json` and `model.safetensors`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from iqvit.errors import ModelError
from iqvit.files import write_atomically
from iqvit.models.float_model import shown
from iqvit.models.multitask.config import MultitaskConfig
from iqvit.models.multitask.model import POSITIONS, Multitask, resampled
from iqvit.models.weights import Weights, load_weights, read_weights

TASK = "multitask"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class MultitaskCard:
    """What must be known beside the weights.

    labels: the classes of the class map; box_labels: those of the boxes. mean, std: of RGB in 0..1.
    palette: an RGB colour in 0..255 for each class of the map, or None.
    """

    labels: tuple[str, ...]
    box_labels: tuple[str, ...]
    mean: Triple
    std: Triple
    palette: tuple[tuple[int, int, int], ...] | None = None


def save_multitask(folder: Path, model: Multitask, card: MultitaskCard) -> None:
    """Writes the folder; ModelError where `card` does not fit, IqvitError where it cannot."""
    _check(card, model.config, str(folder))
    content = {"task": TASK, "config": model.config.to_dict(), **vars(card)}
    tensors = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors))
    write_atomically(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def load_multitask(
    folder: Path,
    *,
    image_size: tuple[int, int] | None = None,
    drop_path: float | None = None,
    weights: Weights | None = None,
) -> tuple[Multitask, MultitaskCard, tuple[str, ...]]:
    """The model in eval mode, its card, and notes for the user.

    With another `image_size` (height, width) the learned positions are resampled. weights: instead
    of the folder's. ModelError for a folder, or weights, that do not fit.
    """
    trained, card = _read_config(folder / CONFIG)
    config = changed(trained, image_size=image_size, drop_path=drop_path)
    weights = read_weights(folder / WEIGHTS) if weights is None else weights
    notes: tuple[str, ...] = ()
    if trained.image_size != config.image_size:
        weights = replace(weights, tensors=_fitted(weights, trained, config))
        notes = (f"trained at {shown(trained.image_size)}, used at {shown(config.image_size)}",)
    model = Multitask(config)
    notes = (*load_weights(model, weights), *notes)
    return model.eval(), card, notes


def changed(
    config: MultitaskConfig,
    *,
    image_size: tuple[int, int] | None = None,
    drop_path: float | None = None,
) -> MultitaskConfig:
    """`config` with another image size or stochastic depth of the ViT, where given."""
    backbone, size = config.backbone, image_size or config.image_size
    if drop_path is not None:
        backbone = replace(backbone, drop_path=drop_path)
    return replace(config, detector=replace(config.detector, image_size=size, backbone=backbone))


def _fitted(weights: Weights, trained: MultitaskConfig, wanted: MultitaskConfig) -> dict[str, Any]:
    """The tensors with positions resampled, where they are of the trained size."""
    tensors = dict(weights.tensors)
    position = tensors.get(POSITIONS)
    tokens = trained.segmenter.encoder.tokens
    if position is not None and position.ndim == 3 and position.shape[1] == tokens:
        resampled(tensors, trained, wanted)
    return tensors


def _read_config(path: Path) -> tuple[MultitaskConfig, MultitaskCard]:
    try:
        content: Any = json.loads(path.read_text())
        if content["task"] != TASK:
            raise ModelError(f"{path} is of a model for {content['task']}, not for {TASK}")
        config = MultitaskConfig.from_dict(content["config"])
        palette = content["palette"]
        card = MultitaskCard(
            labels=tuple(content["labels"]),
            box_labels=tuple(content["box_labels"]),
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            palette=None if palette is None else tuple((r, g, b) for r, g, b in palette),
        )
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{path} is no config.json of a multi-task model: {reason}") from error
    _check(card, config, str(path))
    return config, card


def _check(card: MultitaskCard, config: MultitaskConfig, place: str) -> None:
    counted = (
        ("labels", card.labels, config.classes),
        ("box labels", card.box_labels, config.detector.classes),
        ("colours", card.palette, config.classes),
        ("means", card.mean, 3),
        ("stds", card.std, 3),
    )
    for what, values, count in counted:
        if values is not None and len(values) != count:
            raise ModelError(f"{place}: {len(values)} {what} where {count} are needed")
