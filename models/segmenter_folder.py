"""A trained Segmenter as a folder: `config.json` with its sizes, and `model.safetensors`."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from iqvit.errors import IqvitError, ModelError
from iqvit.files import write_atomically
from iqvit.models.float_model import building
from iqvit.models.segmenter import Segmenter, SegmenterConfig, at_size
from iqvit.models.weights import Weights, load_weights, read_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
VARIANT = "variant.yml"
CHECKPOINT = "checkpoint.pth"
TASK = "segmentation"

Triple = tuple[float, float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class SegmenterMeta:
    """What belongs to a Segmenter beside its weights.

    labels: a name for each class, or None. mean, std: of RGB in 0..1. palette: an RGB colour in
    0..255 for each class, or None.
    """

    labels: tuple[str, ...] | None
    mean: Triple
    std: Triple
    palette: tuple[Colour, ...] | None = None


@dataclass(frozen=True)
class LoadedSegmenter:
    """A Segmenter in eval mode, what belongs to it, the file of its weights, notes for the user."""

    segmenter: Segmenter
    meta: SegmenterMeta
    weights: str
    notes: tuple[str, ...] = ()


def save_segmenter(folder: Path, segmenter: Segmenter, meta: SegmenterMeta) -> None:
    """Writes `config.json` and `model.safetensors`, each whole or not at all.

    The folder is made where it is not there. Raises ModelError for `meta` that does not fit the
    number of classes, IqvitError where the files cannot be written.
    """
    folder = Path(folder)
    content = {
        "task": TASK,
        **asdict(segmenter.config),
        "labels": None if meta.labels is None else list(meta.labels),
        "mean": list(meta.mean),
        "std": list(meta.std),
        "palette": None if meta.palette is None else [list(colour) for colour in meta.palette],
    }
    # Through JSON and back, so that nothing is saved that would not load.
    text = json.dumps(content, indent=1)
    parse(json.loads(text), f"the configuration for {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IqvitError(f"cannot write {folder}: {error.strerror or error}") from error
    tensors = {k: t.detach().cpu().contiguous() for k, t in segmenter.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(tensors))
    write_atomically(folder / CONFIG, text.encode() + b"\n")


def load_segmenter(
    folder: Path,
    image_size: tuple[int, int] | None = None,
    *,
    weights: Weights | None = None,
) -> LoadedSegmenter:
    """The Segmenter that `save_segmenter` wrote, or the public repository's folder.

    image_size: (height, width) to build for, where not the one it was trained at; the position
    embedding is resampled. weights: instead of the folder's. Raises ModelError: no such folder,
    damaged or unknown configuration, weights that do not fit, an impossible size.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        config, meta = parse(_read_config(folder / CONFIG), str(folder / CONFIG))
        default = folder / WEIGHTS
    elif (folder / VARIANT).is_file():
        from iqvit.models.segmenter_variant import read_variant

        config, meta = read_variant(folder / VARIANT)
        default = folder / CHECKPOINT
    else:
        raise ModelError(f"{folder} holds no segmenter: neither {CONFIG} nor {VARIANT}")
    with building(f"the segmenter of {folder}"):
        segmenter = Segmenter(config)
    notes = load_whole(segmenter, read_weights(default) if weights is None else weights)
    if image_size is not None and image_size != config.image_size:
        segmenter = at_size(segmenter, image_size)
        height, width = image_size
        notes = (*notes, f"position embedding resampled for {height}x{width} pixels")
    source = str(default) if weights is None else weights.source
    return LoadedSegmenter(segmenter.eval(), meta, source, notes)


def load_whole(segmenter: Segmenter, weights: Weights) -> tuple[str, ...]:
    """Copies encoder and decoder, every key and shape exactly; returns notes for the user.

    The head of the encoder's classifier, which public checkpoints keep, is ignored. ModelError says
    where the number of classes is another.
    """
    kept = {k: t for k, t in weights.tensors.items() if not _is_encoder_head(k)}
    notes: tuple[str, ...] = ()
    if len(kept) < len(weights.tensors):
        notes = ("the encoder's classifier (encoder.head), which is not used, is ignored",)
    found, expected = classes_of(kept), segmenter.config.classes
    if found not in (None, expected):
        raise ModelError(
            f"{weights.source} holds weights for {found} classes where the model has {expected}"
        )
    return (*load_weights(segmenter, Weights(kept, weights.source, weights.notes)), *notes)


def classes_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a decoder's weights; None where there is no decoder."""
    for name, axis in (("decoder.head.weight", 0), ("decoder.cls_emb", 1)):
        found = next((t for k, t in tensors.items() if k.endswith(name)), None)
        if found is not None and found.dim() > axis:
            return found.shape[axis]
    return None


def parse(content: Mapping[str, Any], where: str) -> tuple[SegmenterConfig, SegmenterMeta]:
    """Sizes and meta of a `config.json`; ModelError names `where`, the key and its value."""
    content = dict(content)
    if content.pop("task", None) != TASK:
        raise ModelError(f"{where} is not of a segmenter: it has no task {TASK!r}")
    sizes = {field.name: field for field in fields(SegmenterConfig)}
    known = [*sizes, *(field.name for field in fields(SegmenterMeta))]
    unknown = sorted(content.keys() - set(known))
    if unknown:
        raise ModelError(f"{where} has unknown keys {', '.join(unknown)}; known: {known}")
    needed = [name for name, field in sizes.items() if field.default is MISSING]
    missing = [name for name in (*needed, "mean", "std") if name not in content]
    if missing:
        raise ModelError(f"{where} lacks {', '.join(missing)}")
    values = {k: _typed(content[k], k, sizes[k].type, where) for k in sizes if k in content}
    try:
        config = SegmenterConfig(**values)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return config, _meta(content, config.classes, where)


def _meta(content: Mapping[str, Any], classes: int, where: str) -> SegmenterMeta:
    labels, palette = content.get("labels"), content.get("palette")
    for name, value in (("labels", labels), ("palette", palette)):
        if value is not None and (not isinstance(value, list) or len(value) != classes):
            count = len(value) if isinstance(value, list) else repr(value)
            raise ModelError(f"{where}: {name} has {count} entries for {classes} classes")
    if labels is not None and not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{where}: labels has entries that are not text: {labels}")
    return SegmenterMeta(
        None if labels is None else tuple(labels),
        triple(content["mean"], f"{where}: mean"),
        triple(content["std"], f"{where}: std"),
        None if palette is None else tuple(_colour(value, where) for value in palette),
    )


def triple(value: Any, what: str) -> Triple:
    """Three numbers; ModelError."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(_is(number, float) for number in numbers):
        raise ModelError(f"{what} is {value!r}, not three numbers")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _colour(value: Any, where: str) -> Colour:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(_is(n, int) and 0 <= n <= 255 for n in numbers):
        raise ModelError(f"{where}: palette has {value!r}, not red, green and blue in 0..255")
    return numbers[0], numbers[1], numbers[2]


def _typed(value: Any, name: str, kind: Any, where: str) -> Any:
    """`value` as the field's type; a pair comes as a list."""
    if kind not in (int, float, bool, str):
        if isinstance(value, list) and len(value) == 2 and all(_is(n, int) for n in value):
            return tuple(value)
        raise ModelError(f"{where}: {name} is {value!r}, not [height, width]")
    if not _is(value, kind):
        raise ModelError(f"{where}: {name} is {value!r}, not of type {kind.__name__}")
    return value


def _is(value: Any, kind: type) -> bool:
    # In Python True is an int, and JSON writes 0.0 as 0 elsewhere.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _is_encoder_head(name: str) -> bool:
    return "encoder.head." in name


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object")
    return content
