"""A float model by name: timm:, torchvision:, transformers:, or the user's FILE.py:FUNCTION."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from iqvit.errors import ModelError
from iqvit.models import from_file, from_timm, from_torchvision, from_transformers
from iqvit.models.float_model import FloatModel, Request
from iqvit.models.weights import read_weights, require_finite

__all__ = ["FloatModel", "load_model"]


Builder = Callable[[str, Request], FloatModel]

SOURCES: dict[str, Builder] = {
    "timm": from_timm.build,
    "torchvision": from_torchvision.build,
    "transformers": from_transformers.build,
}

FORMS = (
    "timm:NAME, torchvision:NAME, transformers:NAME_OR_FOLDER, or FILE.py:FUNCTION for your own "
    "function that returns an nn.Module"
)


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    input_size: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> FloatModel:
    """The float model that `spec` names, in eval mode.

    Without `weights` the model keeps what it was made with: random numbers drawn from `seed`, or
    the weights of a transformers folder or of the user's function. With `weights` every key and
    shape must fit. `input_size` (pixels, square) replaces the model's own; a timm model whose
    weights were made for another size has its position embedding resampled, which is noted.
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
    for option, value in (("input size", input_size), ("number of classes", num_classes)):
        if value is not None and value < 1:
            raise ModelError(f"the {option} of {spec} cannot be {value}")

    loaded = None if weights is None else read_weights(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builder(name, Request(loaded, input_size, num_classes))
    if model.weights == "random":
        model = replace(model, weights=f"random, seed {seed}")
    require_finite(model.module.named_parameters(), spec)
    model.module.eval()
    return replace(model, name=spec)
