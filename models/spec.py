"""A float model by name: timm:, torchvision:, transformers:, segmenter:, rtdetr:, multitask:,
embedded:, or FILE.py:F.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from iqvit.errors import ModelError
from iqvit.models import (
    embedded,
    from_file,
    from_multitask,
    from_rtdetr,
    from_segmenter,
    from_timm,
    from_torchvision,
    from_transformers,
)
from iqvit.models.float_model import FloatModel, Request
from iqvit.models.weights import read_weights, require_finite

__all__ = ["FloatModel", "load_model"]


Builder = Callable[[str, Request], FloatModel]

SOURCES: dict[str, Builder] = {
    "timm": from_timm.build,
    "torchvision": from_torchvision.build,
    "transformers": from_transformers.build,
    "segmenter": from_segmenter.build,
    "rtdetr": from_rtdetr.build,
    "multitask": from_multitask.build,
    "embedded": embedded.build,
}

FORMS = (
    "timm:NAME, torchvision:NAME, transformers:NAME_OR_FOLDER, segmenter:FOLDER, "
    "segmenter:TIMM_NAME+linear|mask, rtdetr:FOLDER, rtdetr:vit_tiny|resnet_tiny|v2_s[+discrete], "
    "multitask:FOLDER, multitask:vit_tiny|small[+mask][+discrete], embedded:scenes, whose weights "
    "come with iqvit (these two also +segmentation, +detection), "
    "or FILE.py:FUNCTION for your own function that returns an nn.Module"
)


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    input_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> FloatModel:
    """The float model that `spec` names, in eval mode.

    Without `weights` the model keeps what it was made with: random numbers drawn from `seed`, or
    the weights of a folder or of the user's function. With `weights` every key and shape must fit.
    `input_size` (pixels of a square's side, or (height, width)) replaces the model's own; a timm
    model, segmenter, detector or multi-task model whose weights were made for another size has its
    position embedding resampled, which is noted.
    Nothing is ever fetched from the network. The torch caller's random state is left as it was.

    Raises ModelError: unknown name, missing library, impossible size, weights that do not fit.
    """
    source, _, name = spec.partition(":")
    builder = SOURCES.get(source)
    if builder is None:
        if not from_file.is_file_spec(spec):
            raise ModelError(f"{spec!r} names no model; a model is named {FORMS}")
        builder, name = from_file.build, spec
    if name == "":
        raise ModelError(f"{spec!r} has no name after the colon; a model is named {FORMS}")
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ModelError(f"the input size of {spec} cannot be {input_size}")
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"the number of classes of {spec} cannot be {num_classes}")

    loaded = None if weights is None else read_weights(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builder(name, Request(loaded, size, num_classes))
    if model.weights == "random":
        model = replace(model, weights=f"random, seed {seed}")
    require_finite(model.module.named_parameters(), spec)
    model.module.eval()
    return replace(model, name=spec)
