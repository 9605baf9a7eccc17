"""Models whose weights come with the package: `embedded:NAME`.

Each is a folder here, as `iqvit train` writes it (`config.json`, `model.safetensors`), with a
`MODEL_CARD.md`: how it was made, on what, by which command, how good it is, its licence.

    model = iqvit.models.spec.load_model("embedded:scenes")
    folder = iqvit.models.embedded.folder("scenes")        # to train on: --from FOLDER
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from iqvit.errors import ModelError
from iqvit.models import from_multitask
from iqvit.models.float_model import FloatModel, Request

__all__ = ["MODELS", "build", "card", "folder"]

SPEC = "embedded:"
CARD = "MODEL_CARD.md"

MODELS: dict[str, Callable[[str, Request], FloatModel]] = {"scenes": from_multitask.build}
"""By name, what builds the model in its folder."""


def folder(name: str) -> Path:
    """Where the model `name` lies; ModelError for a name that is none of `MODELS`."""
    if name not in MODELS:
        raise ModelError(f"{SPEC}{name} does not come with iqvit; what does is {_listed()}")
    return Path(__file__).parent / name


def card(name: str) -> str:
    """The model card, Markdown; ModelError for a name that is none of `MODELS`."""
    return (folder(name) / CARD).read_text(encoding="utf-8")


def build(name: str, request: Request) -> FloatModel:
    """The model `name`, or (`NAME+segmentation`, `NAME+detection`) one of its heads.

    Raises ModelError for an unknown name, and where other weights or another size do not fit.
    """
    base, plus, head = name.partition("+")
    place = folder(base)
    made = MODELS[base](f"{place}{plus}{head}", request)
    own = made.weights.startswith(str(place))
    return replace(made, weights=f"{SPEC}{base}" if own else made.weights)


def _listed() -> str:
    return ", ".join(f"{SPEC}{name}" for name in MODELS)
