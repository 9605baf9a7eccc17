"""`timm:NAME`: a model of timm, with the preprocessing that timm states for it."""

import difflib
import math
from typing import Any

from torch import nn

from iqvit.errors import ModelError
from iqvit.models.float_model import FloatModel, Request, building, shown
from iqvit.models.labels import labels_for
from iqvit.models.weights import fits


def build(name: str, request: Request) -> FloatModel:
    """The timm model `name` ("vit_tiny_patch16_224", also with a tag after a dot).

    timm's own `exportable` switch stays off: it replaces scaled_dot_product_attention by its
    parts, and attention is to be captured as one operator.
    """
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise ModelError(
            f"timm:{name} needs timm, which is not installed: pip install iqvit[models]"
        ) from error

    require_known(name, timm)
    options: dict[str, Any] = {}
    if request.num_classes is not None:
        options["num_classes"] = request.num_classes
    with building(f"timm:{name}"):
        module = timm.create_model(name, pretrained=False, **options)
    config = resolve_model_data_config(module)
    height, width = config["input_size"][1:]
    size = request.input_size
    if size is None or (height, width) == size:
        weights, notes = request.fill(module)
    elif request.weights is not None and not fits(module, request.weights):
        # Not made for the model's own size: perhaps fine-tuned at the one that was asked for.
        with building(f"timm:{name} at {shown(size)} pixels"):
            module = timm.create_model(name, pretrained=False, img_size=size, **options)
        weights, notes = request.fill(module)
        height, width = size
    else:
        weights, notes = request.fill(module)
        _set_input_size(module, name, size)
        if request.weights is not None and hasattr(module, "pos_embed"):
            notes = (*notes, f"position embedding resampled for {shown(size)} pixels")
        height, width = size
    return FloatModel(
        module=module,
        name=name,
        input_shape=(1, 3, height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        crop=config["crop_mode"],
        interpolation=config["interpolation"],
        labels=labels_for(getattr(module, "num_classes", 0)),
        weights=weights,
        notes=notes,
    )


def require_known(name: str, timm: Any) -> None:
    """ModelError, with close names, unless `name` (also with a tag) is a model of timm's."""
    # timm takes "hf-hub:..." and "local-dir:..." for places to load from; we fetch nothing.
    if ":" in name or "/" in name:
        raise ModelError(f"timm:{name} is a place, not a name; load weights with --weights FILE")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        hint = f"close names: {', '.join(close)}" if close else "timm.list_models() lists them"
        raise ModelError(f"timm {timm.__version__} has no model {architecture!r}; {hint}")
    tagged = [n for n in timm.list_pretrained() if n.startswith(f"{architecture}.")]
    if tag and name not in tagged:
        known = ", ".join(tagged) or "none"
        raise ModelError(f"timm's {architecture} has no tag {tag!r}; known: {known}")


def _set_input_size(module: nn.Module, name: str, size: tuple[int, int]) -> None:
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if patch is not None and (size[0] % patch[0] != 0 or size[1] % patch[1] != 0):
        raise ModelError(
            f"timm:{name}: {shown(size)} pixels are not a multiple of its patch of {patch}"
        )
    resample = getattr(module, "set_input_size", None)
    if resample is None:
        return
    with building(f"timm:{name} at {shown(size)} pixels"):
        resample(img_size=size)
