"""The Segmenter that training begins with: fresh on a trained encoder, or a trained one."""

from dataclasses import replace
from pathlib import Path

from iqvit.models import from_segmenter
from iqvit.models.segmenter import Segmenter
from iqvit.models.segmenter_folder import LoadedSegmenter, load_segmenter
from iqvit.models.weights import read_weights
from iqvit.training.start import Start, drawn_from, fresh_name, require_rate
from iqvit.training.transfer import carry_over

SPEC = "segmenter:"


def fresh(
    spec: str,
    *,
    weights: Path | None,
    size: tuple[int, int],
    classes: int,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[Segmenter]:
    """The Segmenter that `spec` names (segmenter:TIMM_NAME+linear or +mask), at `size`.

    weights: a file with timm's names for the encoder, or the whole segmenter's. What they do not
    hold is drawn from `seed`. Raises ModelError for an unknown name or weights that do not fit.
    """
    require_rate(drop_path)
    name = fresh_name(spec, SPEC, "segmenter:TIMM_NAME+linear or +mask")
    read = None if weights is None else read_weights(weights)
    with drawn_from(seed):
        made = from_segmenter.load(
            name, image_size=size, classes=classes, weights=read, drop_path=drop_path
        )
    if weights is None:
        unread = f"the weights are random, seed {seed}; give --weights FILE for a trained encoder"
        made = replace(made, notes=(*made.notes, unread))
    return _start(made, spec, "random" if weights is None else weights.name)


def continued(
    folder: Path,
    *,
    size: tuple[int, int],
    classes: int,
    decoder: str | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
) -> Start[Segmenter]:
    """The trained Segmenter of `folder`, resampled to `size`, for `classes` classes.

    decoder: "linear" or "mask" where it is to be another than the trained one's. Every weight whose
    name and shape are those of the new model is kept, which is all of the encoder; the rest is
    drawn from `seed`, and noted. Raises ModelError.
    """
    require_rate(drop_path)
    loaded = load_segmenter(folder, size)
    config = replace(loaded.segmenter.config, classes=classes, drop_path=drop_path)
    config = config if decoder is None else replace(config, decoder=decoder)
    with drawn_from(seed):
        segmenter = Segmenter(config)
    notes = (*loaded.notes, *carry_over(loaded.segmenter, segmenter))
    made = replace(loaded, segmenter=segmenter, notes=notes)
    return _start(made, f"{SPEC}{folder.name}", Path(loaded.weights).name)


def _start(made: LoadedSegmenter, name: str, weights: str) -> Start[Segmenter]:
    meta = made.meta
    return Start(made.segmenter, name, weights, meta.mean, meta.std, made.notes)
