"""`variant.yml`: the configuration beside a checkpoint of the public `segmenter` repository."""

from pathlib import Path
from typing import Any

import yaml

from iqvit.errors import ModelError
from iqvit.models.float_model import IMAGENET_MEAN, IMAGENET_STD
from iqvit.models.segmenter import SegmenterConfig
from iqvit.models.segmenter_folder import SegmenterMeta

EPS = 1e-5
"""Epsilon of the public code's LayerNorms: torch's default, not timm's."""
HEAD_WIDTH = 64
"""Channels of a head of the public mask decoder, whatever the encoder has."""
NORMALISATIONS = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": (IMAGENET_MEAN, IMAGENET_STD),
}


class _Loader(yaml.SafeLoader):
    """The safe loader, and Python's tuples as lists: the public code writes its sizes as such."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node),  # type: ignore[arg-type]
)


def read_variant(path: Path) -> tuple[SegmenterConfig, SegmenterMeta]:
    """Sizes and normalisation of a `variant.yml`; the classes' names are not in it.

    Raises ModelError for a file that is no YAML of plain values, lacks a key, or asks for what is
    not supported (a distilled encoder, other decoders).
    """
    net = _read(path)
    if net.get("distilled"):
        raise ModelError(
            f"{path}: distilled encoders, with a second token, are not supported; take a "
            "checkpoint with a vit_ backbone"
        )
    decoder = net.get("decoder")
    name = decoder.get("name") if isinstance(decoder, dict) else None
    if not isinstance(decoder, dict) or name not in ("linear", "mask_transformer"):
        raise ModelError(f"{path}: decoder {name!r} is neither linear nor mask_transformer")
    normalisation = net.get("normalization")
    if not isinstance(normalisation, str) or normalisation not in NORMALISATIONS:
        raise ModelError(
            f"{path}: normalization {normalisation!r} is none of {', '.join(NORMALISATIONS)}"
        )
    width = _integer(net, "d_model", path)
    mask = name == "mask_transformer"
    try:
        config = SegmenterConfig(
            image_size=_size(net.get("image_size"), path),
            classes=_integer(net, "n_cls", path),
            patch_size=_integer(net, "patch_size", path),
            width=width,
            depth=_integer(net, "n_layers", path),
            heads=_integer(net, "n_heads", path),
            decoder="mask" if mask else "linear",
            decoder_depth=_integer(decoder, "n_layers", path) if mask else 1,
            decoder_heads=max(1, width // HEAD_WIDTH),
            eps=EPS,
        )
    except ModelError as error:
        raise ModelError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    mean, std = NORMALISATIONS[normalisation]
    return config, SegmenterMeta(None, mean, std)


def _read(path: Path) -> dict[str, Any]:
    try:
        # _Loader is a SafeLoader: it makes plain values only, and refuses every other tag.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} is not readable YAML of plain values: {reason}") from error
    net = content.get("net_kwargs") if isinstance(content, dict) else None
    if not isinstance(net, dict):
        raise ModelError(f"{path} has no net_kwargs, which hold the sizes of the model")
    return net


def _integer(values: dict[str, Any], key: str, path: Path) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"{path}: {key} is {value!r}, not an integer")
    return value


def _size(value: Any, path: Path) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(n, int) for n in pair):
        raise ModelError(f"{path}: image_size is {value!r}, not [height, width]")
    return pair[0], pair[1]
