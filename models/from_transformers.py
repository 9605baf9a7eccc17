"""`transformers:NAME_OR_FOLDER`: a folder with config.json, or a known size with random weights."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from iqvit.errors import ModelError
from iqvit.models.float_model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FloatModel,
    Request,
    building,
    shown,
)
from iqvit.models.from_transformers_detector import (
    DETECTORS,
    PROCESSOR,
    fit_to_size,
    known_settings,
    renamed,
    with_postprocessing,
)
from iqvit.models.labels import labels_for
from iqvit.models.weights import read_weights

KNOWN = re.compile(r"(vit|deit)-(tiny|small|base|large)-(distilled-)?patch(\d+)-(\d+)")
KINDS = {"vit": "ViT", "deit": "DeiT"}
WIDTHS = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, as transformers stores them."""
DEFAULTS = {
    "vit": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
    "deit": {"size": 256, "crop_size": 224, "resample": 3},
    **dict.fromkeys(DETECTORS, PROCESSOR),
}
"""What the image processors of these model types do when no file says otherwise."""


def build(name: str, request: Request) -> FloatModel:
    """The model in folder `name`, or a known size ("vit-base-patch16-224") with random weights.

    A folder holds config.json; its model.safetensors (or pytorch_model.bin) is loaded strictly
    unless other weights are asked for, and preprocessor_config.json is followed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"transformers:{name} needs transformers, which is not installed: "
            "pip install iqvit[models]"
        ) from error

    folder = Path(name)
    settings = _read_json(folder / "config.json") if folder.is_dir() else _known(name)
    config = _config(settings, name, transformers)
    if request.num_classes is not None:
        config.num_labels = request.num_classes
    if request.input_size is not None:
        config.image_size = request.sides
    processor, said = _processor(folder, config.model_type)
    detects = config.model_type in DETECTORS
    if detects:
        size = fit_to_size(config, processor, request, name)
        resize, crop = size, "squash"
    else:
        size = _patched_size(config, name)
        resize, crop = _resize(processor, size, request.input_size is not None, name)
    module = _module(config, name, transformers)
    weights, notes = _fill(module, folder, request, detects)
    return FloatModel(
        module=with_postprocessing(module, config) if detects else module,
        name=name,
        input_shape=(1, 3, *size),
        mean=tuple(processor["image_mean"]),
        std=tuple(processor["image_std"]),
        resize=resize,
        crop=crop,
        interpolation=RESAMPLE[processor["resample"]],
        labels=_labels(config),
        weights=weights,
        notes=(*notes, *said),
        least=max(config.feat_strides) if detects else 1,
        task="detection" if detects else "classification",
    )


def _known(name: str) -> dict[str, Any]:
    match, detector = KNOWN.fullmatch(name.rpartition("/")[2]), known_settings(name)
    if detector is not None:
        return detector
    if match is None:
        raise ModelError(
            f"transformers:{name} is neither a folder with config.json nor a known size such as "
            "vit-base-patch16-224, deit-small-distilled-patch16-224 or rtdetr_v2_r18vd; models are "
            "not downloaded"
        )
    kind, size, distilled, patch, pixels = match.groups()
    width, depth, heads = WIDTHS[size]
    suffix = "WithTeacher" if distilled else ""
    return {
        "model_type": kind,
        "architectures": [f"{KINDS[kind]}ForImageClassification{suffix}"],
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": int(patch),
        "image_size": int(pixels),
        "num_labels": 1000,
    }


def _config(settings: dict[str, Any], name: str, transformers: Any) -> Any:
    # From the dictionary, never by name: nothing is looked up on the network or run from a folder.
    kind = settings.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise ModelError(f"transformers:{name}: model_type {kind!r} is not known here")
    with building(f"the configuration of transformers:{name}"):
        return transformers.CONFIG_MAPPING[kind].from_dict(settings)


def _patched_size(config: Any, name: str) -> tuple[int, int]:
    size = _pair(getattr(config, "image_size", None), name)
    patch = getattr(config, "patch_size", 1)
    if isinstance(patch, int) and (size[0] % patch != 0 or size[1] % patch != 0):
        raise ModelError(
            f"transformers:{name}: {shown(size)} pixels are not whole patches of {patch}"
        )
    return size


def _module(config: Any, name: str, transformers: Any) -> nn.Module:
    architecture = (config.architectures or [DETECTORS.get(config.model_type)])[0]
    if architecture is None:
        with building(f"transformers:{name}"):
            return transformers.AutoModelForImageClassification.from_config(config)
    made = getattr(transformers, architecture, None)
    if not isinstance(made, type) or not issubclass(made, transformers.PreTrainedModel):
        raise ModelError(f"transformers:{name}: config.json asks for unknown {architecture!r}")
    with building(f"transformers:{name}"):
        return made(config)


def _fill(
    module: nn.Module, folder: Path, request: Request, detects: bool
) -> tuple[str, tuple[str, ...]]:
    """Loads the weights that are asked for, else the folder's; where they are from, and notes."""
    path = next((folder / f for f in WEIGHT_FILES if (folder / f).is_file()), None)
    if request.weights is None and path is not None:
        request = replace(request, weights=read_weights(path))
    if request.weights is not None or not folder.is_dir():
        return (renamed(request) if detects else request).fill(module)
    if any(folder.glob("*.index.json")):
        raise ModelError(f"{folder}: weights in several files are not read; save them as one file")
    return "random", (f"{folder} holds no {' or '.join(WEIGHT_FILES)}: the weights are random",)


def _processor(folder: Path, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    assumed = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "resample": 3}
    assumed |= DEFAULTS.get(kind, {})
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        note = f"no preprocessor_config.json in {folder}: preprocessing of a {kind} model assumed"
        return assumed, (note,) if folder.is_dir() else ()
    read = assumed | _read_json(path)
    if read.get("do_normalize") is False:
        read |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    factor = read.get("rescale_factor", 1 / 255)
    if (
        abs(factor * 255 - 1) > 1e-6
        or read.get("do_rescale") is False
        or (read["resample"] not in RESAMPLE)
    ):
        raise ModelError(f"{path}: pixels are scaled or resampled in a way that is not supported")
    return read, ()


def _resize(
    processor: dict[str, Any], size: tuple[int, int], replaced: bool, name: str
) -> tuple[tuple[int, int], str]:
    """(height, width) of the resize and the kind of crop; the whole image where none is stated."""
    stated = processor.get("size")
    crop = "squash"
    if isinstance(stated, dict) and "shortest_edge" in stated:
        stated, crop = stated["shortest_edge"], "center"
    elif isinstance(stated, dict):
        stated = (stated.get("height"), stated.get("width"))
    if stated is None:
        return size, crop
    resize = _pair(stated, name)
    if replaced:
        # Keeps the share of the image that is cut out when the input size is not the model's own.
        own = processor.get("crop_size", resize if crop == "squash" else size)
        if isinstance(own, dict):
            own = (own["height"], own["width"])
        before = _pair(own, name)
        resize = (
            max(size[0], size[0] * resize[0] // before[0]),
            max(size[1], size[1] * resize[1] // before[1]),
        )
    return resize, crop


def _labels(config: Any) -> tuple[str, ...] | None:
    names = tuple(config.id2label[i] for i in sorted(config.id2label))
    if any(n.startswith("LABEL_") for n in names):
        return labels_for(config.num_labels)
    return names


def _pair(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(value) if isinstance(value, list | tuple) else ()
    if len(values) == 2 and all(isinstance(v, int) for v in values):
        return values[0], values[1]
    raise ModelError(f"transformers:{name}: an image size of {value!r} is not height and width")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path.parent} holds no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object")
    return content
