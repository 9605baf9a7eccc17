"""`multitask:FOLDER`, trained, or `multitask:vit_tiny|small[+mask][+discrete]`, a fresh one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from iqvit.errors import ModelError
from iqvit.models.detections import MOST_DETECTIONS
from iqvit.models.float_model import FloatModel, Request
from iqvit.models.multitask.config import MultitaskConfig, multitask_small, multitask_vit_tiny
from iqvit.models.multitask.folder import WEIGHTS, MultitaskCard, changed, load_multitask
from iqvit.models.multitask.model import JointOutputs, Multitask, most_detections
from iqvit.models.rtdetr.config import STRIDES
from iqvit.models.rtdetr.model import Detections
from iqvit.models.segmenter import ClassMap
from iqvit.models.vit_loading import load_vit_encoder
from iqvit.models.weights import Weights, fits, load_weights

SPEC = "multitask:"
HALF = (0.5, 0.5, 0.5)
HEADS = ("segmentation", "detection")
MASK, DISCRETE = "mask", "discrete"

PRESETS: dict[str, Callable[..., MultitaskConfig]] = {
    "vit_tiny": multitask_vit_tiny,
    "small": multitask_small,
}


@dataclass(frozen=True)
class LoadedMultitask:
    """A model in eval mode, what belongs to it, the file of its weights, notes for the user."""

    model: Multitask
    card: MultitaskCard
    weights: str
    notes: tuple[str, ...] = ()


def build(name: str, request: Request) -> FloatModel:
    """The model in folder `name`, or a fresh one, as a whole or (`+HEAD`) with one head only.

    A fresh one has `num_classes` classes of pixels and as many of boxes; weights for it are those
    of the whole model, or of timm's ViT for the encoder alone, which leaves the heads random.
    """
    base, head = split_head(name)
    loaded = load(
        base,
        image_size=request.input_size,
        classes=request.num_classes,
        box_classes=request.num_classes,
        weights=request.weights,
    )
    return float_model(loaded, name, head)


def split_head(name: str) -> tuple[str, str | None]:
    """ "street+detection" -> ("street", "detection"); no head, or a folder of that name: None."""
    base, plus, last = name.rpartition("+")
    if plus and last in HEADS and not Path(name).is_dir():
        return base, last
    return name, None


def float_model(loaded: LoadedMultitask, name: str, head: str | None = None) -> FloatModel:
    """What the other stages take. head: "segmentation" or "detection", None for both."""
    config, card = loaded.model.config, loaded.card
    both = FloatModel(
        module=_module(loaded.model, head).eval(),
        name=f"{SPEC}{name}",
        input_shape=(1, 3, *config.image_size),
        mean=card.mean,
        std=card.std,
        resize=config.image_size,
        crop="squash",
        interpolation="bilinear",
        least=STRIDES[-1],
        labels=card.labels,
        box_labels=card.box_labels,
        weights=loaded.weights,
        notes=loaded.notes,
        task="multitask",
        palette=card.palette,
    )
    if head == "segmentation":
        return replace(both, task=head, box_labels=None)
    if head == "detection":
        return replace(both, task=head, labels=card.box_labels, box_labels=None, palette=None)
    return both


def load(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    classes: int | None = None,
    box_classes: int | None = None,
    weights: Weights | None = None,
    drop_path: float | None = None,
    queries: int | None = None,
) -> LoadedMultitask:
    """What `name` (a spec without `multitask:`) means; fresh weights are of torch's random state.

    image_size: (height, width) in pixels, multiples of 32. classes of pixels and box_classes: of a
    fresh model. drop_path of the ViT's blocks: where not the folder's own or 0. queries: of a fresh
    one. Raises ModelError: neither folder nor name, impossible sizes, weights that do not fit.
    """
    if Path(name).is_dir():
        model, card, notes = load_multitask(
            Path(name), image_size=image_size, drop_path=drop_path, weights=weights
        )
        source = str(Path(name) / WEIGHTS) if weights is None else weights.source
        return LoadedMultitask(model, card, source, notes)
    if classes is None or box_classes is None:
        raise ModelError(f"{SPEC}{name} is a fresh model: give its number of classes")
    config = _fresh_config(name, classes, box_classes, queries)
    model = Multitask(changed(config, image_size=image_size, drop_path=drop_path)).eval()
    labels, box_labels = (
        tuple(f"class {i}" for i in range(count)) for count in (classes, box_classes)
    )
    card = MultitaskCard(labels, box_labels, HALF, HALF)
    if weights is None:
        return LoadedMultitask(model, card, "random")
    if fits(model, weights):
        return LoadedMultitask(model, card, weights.source, load_weights(model, weights))
    notes = (*load_vit_encoder(model.vit, weights), "the weights of both heads are random")
    return LoadedMultitask(model, card, weights.source, notes)


def _fresh_config(
    name: str, classes: int, box_classes: int, queries: int | None
) -> MultitaskConfig:
    base, *options = name.split("+")
    unknown = [option for option in options if option not in (MASK, DISCRETE)]
    if base not in PRESETS or unknown:
        raise ModelError(
            f"{SPEC}{name} is neither a folder nor one of {', '.join(PRESETS)}, which take "
            f"+{MASK} for the mask decoder, +{DISCRETE} for discrete sampling, and, as folders do, "
            f"+{' or +'.join(HEADS)} for one head only"
        )
    changes = {} if queries is None else {"queries": queries}
    if DISCRETE in options:
        changes = {**changes, "sampling": DISCRETE}
    config = PRESETS[base](classes=classes, box_classes=box_classes, **changes)
    return replace(config, decoder=MASK) if MASK in options else config


def _module(model: Multitask, head: str | None) -> nn.Module:
    top = most_detections(model.config, MOST_DETECTIONS)
    if head == "segmentation":
        return ClassMap(model.segmenter())
    if head == "detection":
        return Detections(model.detector, top)
    return JointOutputs(model, top)
