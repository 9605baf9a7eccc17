"""The float model that every stage starts from, and the preprocessing that it was trained with."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iqvit.errors import ModelError
from iqvit.models.weights import Weights, load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROPS = ("center", "squash")
TASKS = ("classification", "segmentation", "detection", "multitask")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A float network in eval mode with everything that is needed to feed it.

    input_shape is (1, 3, H, W). mean and std are those of RGB in 0..1. Before the network an image
    is resized to `resize` (height, width; "center": the smallest scale that keeps the aspect and
    covers it, "squash": exactly that size), then its middle H x W is cut out; one with a side below
    `least` is refused. `weights` says where the weights are from; `notes` holds what the loader had
    to decide and a user should be told.
    task "classification": the network gives [N, classes]; "segmentation": class indices [N, H, W],
    or logits [N, classes, H, W]; palette then holds RGB in 0..255 of each class, where known.
    "detection": boxes [N, K, 4], scores [N, K] in 0..1 and labels [N, K], best first; a box is
    (cx, cy, w, h) as fractions of the image. "multitask": class indices [N, H, W], whose names and
    colours are labels and palette, and then the three of a detection, whose names are box_labels.
    """

    module: nn.Module
    name: str
    input_shape: tuple[int, int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: tuple[int, int]
    crop: str = "center"
    interpolation: str = "bicubic"
    least: int = 1
    labels: tuple[str, ...] | None = None
    weights: str = "random"
    notes: tuple[str, ...] = ()
    task: str = "classification"
    palette: tuple[tuple[int, int, int], ...] | None = None
    box_labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        height, width = self.input_shape[2:]
        if min(height, width) < 1 or self.resize[0] < height or self.resize[1] < width:
            raise ModelError(
                f"{self.name}: an input of {height}x{width} cannot be cut from an image resized "
                f"to {self.resize[0]}x{self.resize[1]}"
            )
        if self.crop not in CROPS or self.interpolation not in INTERPOLATIONS:
            raise ModelError(
                f"{self.name}: preprocessing {self.crop!r}, {self.interpolation!r} is not "
                f"supported; crop is one of {CROPS}, interpolation one of {INTERPOLATIONS}"
            )
        if not all(math.isfinite(s) and s > 0 for s in self.std) or not all(
            math.isfinite(m) for m in self.mean
        ):
            raise ModelError(f"{self.name}: mean {self.mean} or std {self.std} is impossible")
        if self.task not in TASKS:
            raise ModelError(f"{self.name}: task {self.task!r} is none of {', '.join(TASKS)}")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `iqvit.eval.preprocess.Preprocess.from_dict` takes; plain JSON values."""
        return {
            "size": list(self.input_shape[2:]),
            "resize": list(self.resize),
            "crop": self.crop,
            "interpolation": self.interpolation,
            **({"least": self.least} if self.least > 1 else {}),
        }

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, 3, H, W] = (images / 255 - mean) / std."""
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.std).view(1, 3, 1, 1)
        return (images.float() / 255.0 - mean) / std

    def scores(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 logits [N, classes], without gradients.

        For a segmentation what its module gives: the class map, uint8 [N, H, W], or float32 logits
        [N, classes, H, W].
        """
        with torch.no_grad():
            output = self.module(self.normalise(images))
        if self.task == "classification":
            return logits_of(output, self.name)
        if not isinstance(output, Tensor) or output.dim() not in (3, 4):
            raise ModelError(f"{self.name} is for segmentation, but gives no class map [N, H, W]")
        return output if output.dim() == 4 else output.to(torch.uint8)


@dataclass(frozen=True)
class Request:
    """What is asked of a source of models beside the name; None leaves it to the model.

    input_size: (height, width) in pixels.
    """

    weights: Weights | None = None
    input_size: tuple[int, int] | None = None
    num_classes: int | None = None

    @property
    def sides(self) -> int | tuple[int, int] | None:
        """`input_size` for libraries that take a square by its side."""
        size = self.input_size
        return size[0] if size is not None and size[0] == size[1] else size

    def fill(self, module: nn.Module, otherwise: str = "random") -> tuple[str, tuple[str, ...]]:
        """Loads the weights, if any were given; returns where weights are from, and notes."""
        if self.weights is None:
            return otherwise, ()
        return self.weights.source, load_weights(module, self.weights)


def logits_of(output: Any, name: str) -> Tensor:
    """The class scores [N, classes] in whatever a classifier returns; ModelError where none are.

    A tensor is itself; otherwise a field or key `logits`, else the first tensor of a tuple.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and len(output) > 0:
        found = output[0]
    if isinstance(found, Tensor) and found.dim() == 2:
        return found
    shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
    raise ModelError(
        f"{name} returned {type(output).__name__}{shape} where class scores [N, classes] "
        "(or an output with `logits`) are needed"
    )


def shown(size: tuple[int, int]) -> str:
    """Height and width as they are written in options and messages: 352x480."""
    return f"{size[0]}x{size[1]}"


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turns what another library raises for impossible sizes or options into a ModelError."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{what} cannot be made: {reason}") from error
