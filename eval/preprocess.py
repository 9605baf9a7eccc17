"""From an image file to the uint8 tensor that float model, integer graph and artifact all take."""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iqvit.errors import DataError
from iqvit.models.float_model import CROPS, INTERPOLATIONS

__all__ = [
    "Batch",
    "Preprocess",
    "batches",
    "load_images",
    "read_image",
]

WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of more than 8 bits a channel."""
MOST_PIXELS = 1 << 27
"""Of an image after resizing; a 1 x 100000 strip would otherwise ask for gigabytes."""


@dataclass(frozen=True)
class Preprocess:
    """Resize and crop, on bytes.

    size: (height, width) of the result. resize: (height, width); with crop "center" the image is
    scaled, keeping its aspect, until it just covers `resize`; with "squash" to exactly `resize`.
    Then the middle `size` is cut out. Scaling is Pillow's, antialiased, on uint8. An image that
    already has `size` is taken as it is: it was cropped before, and scaling it up to crop it again
    would lose its border. An image with a side below `least` is refused. Orientation tags (EXIF)
    are not followed, as in the usual evaluations.
    """

    size: tuple[int, int]
    resize: tuple[int, int] | None = None
    crop: str = "center"
    interpolation: str = "bicubic"
    least: int = 1

    def __post_init__(self) -> None:
        height, width = self.size
        rows, columns = self.target
        if min(height, width) < 1 or rows < height or columns < width:
            raise DataError(f"{height}x{width} pixels cannot be cut from {rows}x{columns}")
        if self.crop not in CROPS or self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"preprocessing {self.crop!r}, {self.interpolation!r} is not known; crop is one "
                f"of {CROPS}, interpolation one of {INTERPOLATIONS}"
            )

    @property
    def target(self) -> tuple[int, int]:
        """`resize`, or `size` where none is given."""
        return self.size if self.resize is None else self.resize

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`; DataError for a missing or unknown key."""
        known = {"size", "resize", "crop", "interpolation", "least"}
        if "size" not in values or not set(values) <= known:
            raise DataError(
                f"preprocessing has keys {sorted(values)} where {sorted(known)} are due"
            )
        pairs = {k: _pair(values[k], k) for k in ("size", "resize") if values.get(k) is not None}
        return cls(**{**values, **pairs})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `FloatModel.preprocessing` and an artifact's manifest hold them."""
        return {
            "size": list(self.size),
            "resize": list(self.target),
            "crop": self.crop,
            "interpolation": self.interpolation,
            **({"least": self.least} if self.least > 1 else {}),
        }

    def __call__(self, path: Path) -> Tensor:
        """The image as uint8 RGB [3, H, W]; DataError naming a missing or damaged file."""
        image = read_image(path)
        if min(image.size) < self.least:
            raise DataError(
                f"{path}: an image of {image.width}x{image.height} is smaller than a patch of the "
                f"model, {self.least} pixels"
            )
        height, width = self.size
        if image.size != (width, height):
            scaled = self._scaled_size(image.height, image.width)
            if scaled[0] * scaled[1] > MOST_PIXELS:
                raise DataError(f"{path}: an image of {image.width}x{image.height} is too narrow")
            resampling = Image.Resampling[self.interpolation.upper()]
            image = image.resize((scaled[1], scaled[0]), resampling)
            # Rounded as torchvision's center_crop does: halves to the even row.
            top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        return pil_to_tensor(image)

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.target
        if self.crop == "squash":
            return rows, columns
        if rows * width >= columns * height:
            return rows, rows * width // height
        return columns * height // width, columns


def _pair(value: Any, key: str) -> tuple[int, int]:
    numbers = tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or not all(isinstance(n, int) for n in numbers):
        raise DataError(f"preprocessing: {key} is {value!r}, not [height, width]")
    return numbers[0], numbers[1]


def read_image(path: Path) -> Image.Image:
    """The image in 8-bit RGB (alpha dropped, first frame); DataError naming a file that fails."""
    if path.is_dir():
        raise DataError(f"{path} is a folder where an image is needed; name the files in it")
    if not path.is_file():
        raise DataError(f"no image {path}")
    try:
        with Image.open(path) as image:
            image.load()
            wide = image.mode in WIDE_MODES
            palette = image.mode == "P" and "transparency" in image.info
            rgb = (image.convert("RGBA") if palette else image).convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path} is not a readable image: {error}") from error
    if wide:
        raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
    return rgb


@dataclass(frozen=True)
class Batch:
    """uint8 [N, 3, H, W] and the position of each of its images in the list of paths."""

    images: Tensor
    indices: tuple[int, ...]


def batches(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    batch: int = 1,
    skip_bad: bool = False,
    skipped: list[DataError] | None = None,
) -> Iterator[Batch]:
    """Batches of at most `batch` images, read as they are asked for.

    An image that cannot be read raises DataError, or with `skip_bad` is left out and its error
    appended to `skipped`.
    """
    if batch < 1:
        raise DataError(f"a batch cannot hold {batch} images")
    tensors: list[Tensor] = []
    indices: list[int] = []
    for index, path in enumerate(paths):
        try:
            tensors.append(preprocess(path))
        except DataError as error:
            if not skip_bad:
                raise
            if skipped is not None:
                skipped.append(error)
            continue
        indices.append(index)
        if len(tensors) == batch:
            yield Batch(torch.stack(tensors), tuple(indices))
            tensors, indices = [], []
    if tensors:
        yield Batch(torch.stack(tensors), tuple(indices))


def load_images(paths: Iterable[Path], preprocess: Preprocess) -> Tensor:
    """All of `paths` as one uint8 [N, 3, H, W]; DataError if none, or one that fails."""
    tensors = [preprocess(path) for path in paths]
    if not tensors:
        raise DataError("no images given")
    return torch.stack(tensors)
