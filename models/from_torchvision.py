"""`torchvision:NAME`: a classifier of torchvision, with the preprocessing of its best weights."""

import difflib
import math
from typing import Any

from iqvit.errors import ModelError
from iqvit.models.float_model import FloatModel, Request, building, shown
from iqvit.models.labels import imagenet_labels

OWN_SIZE = {
    "vit_": lambda size: {"image_size": size[0]},
    "maxvit_": lambda size: {"input_size": size},
}
"""How families whose weights depend on the input size are told it, by the start of the name."""


def build(name: str, request: Request) -> FloatModel:
    """The torchvision classifier `name` ("vit_b_16"), preprocessed as its best weights state."""
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models():
        close = difflib.get_close_matches(name, list_models(), n=5, cutoff=0.5)
        hint = f"close names: {', '.join(close)}" if close else "list_models() lists them"
        raise ModelError(f"torchvision has no model {name!r}; {hint}")
    card: Any = get_model_weights(name)["DEFAULT"]
    transforms = card.transforms()
    if not hasattr(transforms, "crop_size") or "categories" not in card.meta:
        raise ModelError(f"torchvision:{name} is not an image classifier")

    crop, shorter = transforms.crop_size[0], transforms.resize_size[0]
    size = (crop, crop) if request.input_size is None else request.input_size
    options: dict[str, Any] = {}
    if size != (crop, crop):
        family = next((f for f in OWN_SIZE if name.startswith(f)), None)
        if family == "vit_" and size[0] != size[1]:
            raise ModelError(f"torchvision:{name} takes square images only, not {shown(size)}")
        options |= {} if family is None else OWN_SIZE[family](size)
    if request.num_classes is not None:
        options["num_classes"] = request.num_classes
    with building(f"torchvision:{name} with {options}"):
        module = get_model(name, weights=None, **options)
    weights, notes = request.fill(module)
    return FloatModel(
        module=module,
        name=name,
        input_shape=(1, 3, size[0], size[1]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=(math.floor(size[0] * shorter / crop), math.floor(size[1] * shorter / crop)),
        interpolation=transforms.interpolation.value,
        labels=imagenet_labels() if request.num_classes in (None, 1000) else None,
        weights=weights,
        notes=notes,
    )
