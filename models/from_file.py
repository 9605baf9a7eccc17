"""`FILE.py:FUNCTION`: the user's own function that makes a model."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from iqvit.errors import ModelError
from iqvit.models.float_model import IMAGENET_MEAN, IMAGENET_STD, FloatModel, Request
from iqvit.models.labels import labels_for

SIZES = ("input_size", "resize", "crop", "crop_pct", "interpolation")
KEYS = (*SIZES, "mean", "std", "labels", "box_labels", "task")


def is_file_spec(spec: str) -> bool:
    """Whether `spec` has the form FILE.py:FUNCTION."""
    path, colon, _ = spec.rpartition(":")
    return colon == ":" and path.endswith(".py")


def build(spec: str, request: Request) -> FloatModel:
    """Calls FUNCTION of FILE.py, which returns an nn.Module or (nn.Module, preprocessing).

    The preprocessing is a dict of any of: input_size (int or (height, width); 224), mean, std
    (ImageNet's), crop_pct (1.0) or resize (int or pair), crop ("center"), interpolation
    ("bicubic"), labels, task ("classification"; see `FloatModel`), box_labels (of a "multitask"
    one). `input_size` (an int, or (height, width) where they differ) and `num_classes` are handed
    to the function where it takes arguments of these names. What the function itself raises is not
    caught: its traceback is what its author needs.
    """
    path, _, function = spec.rpartition(":")
    with _importable(Path(path)):
        made = _call(_function(Path(path), function), spec, request)
    module, card = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(module, nn.Module) or not isinstance(card, Mapping):
        raise ModelError(
            f"{spec} returned {type(made).__name__}; it must return an nn.Module, or an nn.Module "
            "and a dict of preprocessing"
        )
    unknown = [str(k) for k in card if k not in KEYS]
    if unknown:
        raise ModelError(f"{spec}: preprocessing has no {', '.join(unknown)}; known: {KEYS}")

    stated = card.get("input_size", 224)
    size = _pair(stated if request.input_size is None else request.input_size, "input_size", spec)
    weights, notes = request.fill(module, otherwise=f"as {spec} made them")
    labels = card.get("labels")
    if labels is not None and request.num_classes not in (None, len(labels)):
        raise ModelError(f"{spec}: {len(labels)} labels for {request.num_classes} classes")
    return FloatModel(
        module=module,
        name=spec,
        input_shape=(1, 3, *size),
        mean=_triple(card.get("mean", IMAGENET_MEAN), "mean", spec),
        std=_triple(card.get("std", IMAGENET_STD), "std", spec),
        resize=_resize(card, size, spec),
        crop=card.get("crop", "center"),
        interpolation=card.get("interpolation", "bicubic"),
        labels=labels_for(request.num_classes or 0) if labels is None else tuple(labels),
        weights=weights,
        notes=notes,
        task=card.get("task", "classification"),
        box_labels=None if (boxes := card.get("box_labels")) is None else tuple(boxes),
    )


@contextmanager
def _importable(path: Path) -> Iterator[None]:
    """The file's own folder on the import path, as when it is run as a script."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _function(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ModelError(f"no file {path}")
    title = f"_iqvit_user_{path.stem}"
    found = importlib.util.spec_from_file_location(title, path)
    if found is None or found.loader is None:
        raise ModelError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    # Registered, as dataclasses and source lookups in the file expect.
    sys.modules[title] = module
    try:
        found.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ModelError(f"{path} cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{path} defines no function {name!r}")
    return function


def _call(function: Callable[..., Any], spec: str, request: Request) -> Any:
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = {"input_size": request.sides, "num_classes": request.num_classes}
    given = {k: v for k, v in wanted.items() if v is not None and (k in parameters or open_ended)}
    if request.num_classes is not None and "num_classes" not in given:
        raise ModelError(
            f"{spec} takes no argument `num_classes`, so it cannot be set to {request.num_classes}"
        )
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in given
    ]
    if needed:
        raise ModelError(f"{spec} needs arguments that are not given: {', '.join(needed)}")
    return function(**given)


def _resize(card: Mapping[str, Any], size: tuple[int, int], spec: str) -> tuple[int, int]:
    if "resize" in card:
        return _pair(card["resize"], "resize", spec)
    share = card.get("crop_pct", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ModelError(f"{spec}: crop_pct is {share!r}, not a share in 0..1")
    return int(size[0] / share), int(size[1] / share)


def _pair(value: Any, what: str, spec: str) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else value
    if (
        isinstance(values, list | tuple)
        and len(values) == 2
        and all(isinstance(v, int) and v > 0 for v in values)
    ):
        return values[0], values[1]
    raise ModelError(f"{spec}: {what} is {value!r}, neither an int nor (height, width)")


def _triple(value: Any, what: str, spec: str) -> tuple[float, float, float]:
    if (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(v, int | float) for v in value)
    ):
        return float(value[0]), float(value[1]), float(value[2])
    raise ModelError(f"{spec}: {what} is {value!r}, not three numbers")
