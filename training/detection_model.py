"""The detector that training begins with: fresh on a trained encoder, or a trained one."""

from dataclasses import replace
from pathlib import Path

from iqvit.models import from_rtdetr
from iqvit.models.rtdetr.config import PyramidConfig, RTDetrConfig
from iqvit.models.rtdetr.folder import WEIGHTS, load_detector
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.weights import read_weights
from iqvit.training.start import Start, drawn_from, fresh_name, require_rate
from iqvit.training.transfer import carry_over

SPEC = "rtdetr:"


def fresh_detector(
    spec: str,
    *,
    weights: Path | None,
    classes: int,
    size: tuple[int, int] | None = None,
    sampling: str | None = None,
    queries: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[RTDetr]:
    """The RT-DETR that `spec` names (rtdetr:vit_tiny, ...), for `classes` classes.

    weights: a file with timm's names for a ViT, or the whole detector's. What they do not hold is
    drawn from `seed`. size (height, width) in pixels, sampling and queries: instead of the
    preset's. Raises ModelError for an unknown name or weights that do not fit.
    """
    require_rate(drop_path)
    name = fresh_name(spec, SPEC, "rtdetr:NAME, such as rtdetr:vit_tiny")
    read = None if weights is None else read_weights(weights)
    with drawn_from(seed):
        made = from_rtdetr.load(
            name,
            image_size=size,
            classes=classes,
            weights=read,
            drop_path=drop_path,
            sampling=sampling,
            queries=queries,
        )
    source = "random" if weights is None else weights.name
    return Start(made.detector, spec, source, made.card.mean, made.card.std, made.notes)


def continued_detector(
    folder: Path,
    *,
    classes: int,
    size: tuple[int, int] | None = None,
    sampling: str | None = None,
    queries: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[RTDetr]:
    """The trained detector of `folder`, changed to what is asked.

    Every weight whose name and shape are those of the new model is kept: all of them for another
    size or sampling; the rest is drawn from `seed`, and noted. Raises ModelError.
    """
    require_rate(drop_path)
    trained, card, notes = load_detector(folder, size)
    config = _changed(trained.config, classes, sampling, queries, drop_path)
    with drawn_from(seed):
        detector = RTDetr(config)
    notes = (*notes, *carry_over(trained, detector))
    name = f"{SPEC}{folder.name}"
    return Start(detector, name, WEIGHTS, card.mean, card.std, notes)


def _changed(
    config: RTDetrConfig, classes: int, sampling: str | None, queries: int | None, drop_path: float
) -> RTDetrConfig:
    backbone = config.backbone
    if isinstance(backbone, PyramidConfig):
        backbone = replace(backbone, drop_path=drop_path)
    return replace(
        config,
        backbone=backbone,
        classes=classes,
        sampling=sampling or config.sampling,
        queries=queries or config.queries,
    )
