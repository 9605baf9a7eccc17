"""`rtdetr:FOLDER`, a trained detector, or `rtdetr:vit_tiny|resnet_tiny|v2_s[+discrete]`, fresh."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from iqvit.errors import ModelError
from iqvit.models.detections import MOST_DETECTIONS
from iqvit.models.float_model import FloatModel, Request
from iqvit.models.labels import coco_labels
from iqvit.models.rtdetr.config import (
    STRIDES,
    PyramidConfig,
    RTDetrConfig,
    rtdetr_resnet_tiny,
    rtdetr_vit_tiny,
    rtdetrv2_s,
)
from iqvit.models.rtdetr.folder import WEIGHTS, DetectorCard, load_detector, positions_for
from iqvit.models.rtdetr.loading import SCORE_HEAD, load_rtdetr_weights
from iqvit.models.rtdetr.model import Detections, RTDetr
from iqvit.models.rtdetr.names import to_our_names
from iqvit.models.rtdetr.pyramid import ViTPyramid
from iqvit.models.vit_loading import load_vit_encoder
from iqvit.models.weights import Weights

DISCRETE = "+discrete"
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preset:
    """A named size, and the mean and std of RGB in 0..1 that its public weights were made with."""

    config: Callable[..., RTDetrConfig]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    labels: Callable[[], tuple[str, ...]] | None = None


PRESETS = {
    "vit_tiny": Preset(rtdetr_vit_tiny, HALF, HALF),  # timm's vit_tiny_patch16_224.
    "resnet_tiny": Preset(rtdetr_resnet_tiny),
    "v2_s": Preset(rtdetrv2_s, labels=coco_labels),
}


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in eval mode, what belongs to it, the file of its weights, notes for the user."""

    detector: RTDetr
    card: DetectorCard
    weights: str
    notes: tuple[str, ...] = ()


def build(name: str, request: Request) -> FloatModel:
    """The detector in folder `name`, or a fresh one ("vit_tiny", "v2_s+discrete").

    A fresh one needs `num_classes`, except for COCO's v2_s; weights for it are those of the whole
    detector, or of timm's ViT for the encoder alone, which leaves the rest random.
    """
    loaded = load(
        name,
        image_size=request.input_size,
        classes=request.num_classes,
        weights=request.weights,
    )
    config = loaded.detector.config
    top = min(MOST_DETECTIONS, config.queries * config.classes)
    return FloatModel(
        module=Detections(loaded.detector, top).eval(),
        name=f"rtdetr:{name}",
        input_shape=(1, 3, *config.image_size),
        mean=loaded.card.mean,
        std=loaded.card.std,
        resize=config.image_size,
        crop="squash",
        interpolation="bilinear",
        least=STRIDES[-1],
        labels=loaded.card.labels,
        weights=loaded.weights,
        notes=loaded.notes,
        task="detection",
    )


def load(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    classes: int | None = None,
    weights: Weights | None = None,
    drop_path: float | None = None,
    sampling: str | None = None,
    queries: int | None = None,
) -> LoadedDetector:
    """What `name` (a spec without `rtdetr:`) means; fresh weights are of torch's random state.

    image_size: (height, width) in pixels, multiples of 32. classes: of a fresh one; of a folder,
    checked. drop_path (of a ViT's blocks; a ResNet has none), sampling ("default" or "discrete")
    and queries: where not the folder's or the preset's own. Raises ModelError: neither folder nor
    name, impossible sizes, weights that do not fit.
    """
    changes = {"image_size": image_size, "sampling": sampling, "queries": queries}
    given = {key: value for key, value in changes.items() if value is not None}
    if Path(name).is_dir():
        return _folder(Path(name), classes, weights, drop_path, given)
    return _fresh(name, classes, weights, drop_path, given)


def _folder(
    folder: Path,
    classes: int | None,
    weights: Weights | None,
    drop_path: float | None,
    changes: dict[str, object],
) -> LoadedDetector:
    detector, card, notes = load_detector(
        folder, change=lambda config: _changed(config, drop_path, changes), weights=weights
    )
    found = detector.config.classes
    if classes not in (None, found):
        raise ModelError(f"rtdetr:{folder} has {found} classes, not {classes}")
    source = str(folder / WEIGHTS) if weights is None else weights.source
    return LoadedDetector(detector, card, source, notes)


def _fresh(
    name: str,
    classes: int | None,
    weights: Weights | None,
    drop_path: float | None,
    changes: dict[str, object],
) -> LoadedDetector:
    base = name.removesuffix(DISCRETE)
    preset = PRESETS.get(base)
    if preset is None:
        raise ModelError(
            f"rtdetr:{name} is neither a folder nor one of {', '.join(PRESETS)}, which take "
            f"{DISCRETE} for the discrete sampling"
        )
    labels = () if preset.labels is None else preset.labels()
    count = len(labels) if classes is None else classes
    if count == 0:
        raise ModelError(f"rtdetr:{name} is a fresh detector: give its number of classes")
    if count != len(labels):
        labels = tuple(f"class {i}" for i in range(count))
    if base != name:
        changes = {"sampling": "discrete", **changes}
    usual = preset.config(classes=count)
    detector = RTDetr(_changed(usual, drop_path, changes)).eval()
    card = DetectorCard(labels, preset.mean, preset.std)
    if weights is None:
        return LoadedDetector(detector, card, "random")
    tensors, _ = to_our_names(weights.tensors, weights.source)
    if SCORE_HEAD not in tensors and isinstance(detector.backbone, ViTPyramid):
        notes = load_vit_encoder(detector.backbone.vit, weights)
        notes = (*notes, "the weights of the detector behind the ViT are random")
    else:
        fitting = positions_for(weights, usual.image_size, detector.config.image_size)
        notes = load_rtdetr_weights(detector, fitting)
    return LoadedDetector(detector, card, weights.source, notes)


def _changed(
    config: RTDetrConfig, drop_path: float | None, changes: dict[str, object]
) -> RTDetrConfig:
    backbone = config.backbone
    if drop_path is not None and isinstance(backbone, PyramidConfig):
        backbone = replace(backbone, drop_path=drop_path)
    return replace(config, **{"backbone": backbone, **changes})
