"""Sliding windows: images larger than a segmenter's input, with integers only.

The inference of Segmenter (Strudel et al. 2021, section 4.1): windows of the model's size at a
stride, their logits added where they overlap. There the sums are divided by the number of windows
on each pixel. That number is positive and the same for all classes of a pixel, so that it does not
change which class is largest, and is left out here. The same holds for the scale of the logits and
for their zero point, which all windows and classes share.
"""

from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iqvit.errors import DataError
from iqvit.eval.preprocess import MOST_PIXELS, read_image

LogitPredictor = Callable[[Tensor], Tensor]
"""uint8 [1, 3, h, w] -> logits [1, classes, h, w], integer or float, all of one scale."""
INT32_MAX = (1 << 31) - 1


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """0, stride, 2 stride, ... and last the one that is flush with the border.

    Raises DataError where the window does not fit or the stride would leave gaps.
    """
    if not 1 <= stride <= window:
        raise DataError(
            f"a stride of {stride} for windows of {window} pixels: it must lie in 1..{window}, "
            "otherwise pixels are passed over"
        )
    if window > length:
        raise DataError(f"an image of {length} pixels is smaller than the window of {window}")
    return [*range(0, length - window, stride), length - window]


def sliding_logits(
    predict: LogitPredictor, image: Tensor, window: tuple[int, int], stride: int
) -> Tensor:
    """The sum of the windows' logits on each pixel: [1, classes, H, W] of uint8 [1, 3, H, W].

    int32 for integer logits, float64 for real ones. Raises DataError if integer sums could leave
    int32 (windows on one pixel times the largest magnitude), or if `predict` gives other shapes.
    """
    if image.dim() != 4 or image.shape[0] != 1 or image.dtype != torch.uint8:
        raise DataError(
            f"an image of {image.dtype} {tuple(image.shape)} where uint8 [1, 3, H, W] is needed"
        )
    rows, columns = (
        window_starts(length, size, stride)
        for length, size in zip(image.shape[2:], window, strict=True)
    )
    overlap = _overlap(rows, window[0]) * _overlap(columns, window[1])
    places = [
        (..., slice(top, top + window[0]), slice(left, left + window[1]))
        for top, left in product(rows, columns)
    ]
    first = predict(image[places[0]].contiguous())
    dtype = torch.float64 if first.is_floating_point() else torch.int32
    classes = first.shape[1] if first.dim() == 4 else 0
    sums = torch.zeros(1, classes, *image.shape[2:], dtype=dtype)
    rest = (predict(image[place].contiguous()) for place in places[1:])
    for place, logits in zip(places, chain([first], rest), strict=True):
        _check(logits, sums, window, overlap)
        sums[place] += logits.to(dtype)
    return sums


def sliding_class_map(
    predict: LogitPredictor, image: Tensor, window: tuple[int, int], stride: int
) -> Tensor:
    """uint8 class indices [1, H, W] of `sliding_logits`, of equals the lowest."""
    return class_map(sliding_logits(predict, image, window, stride))


def class_map(logits: Tensor) -> Tensor:
    """uint8 [N, H, W]: the class of the largest of [N, classes, H, W], of equals the lowest.

    One comparison a class, as torch's own argmax promises no order among equals.
    """
    if logits.dim() != 4 or not 1 <= logits.shape[1] <= 256:
        raise DataError(
            f"logits of shape {tuple(logits.shape)} where [N, classes, H, W] with 1..256 classes "
            "are needed"
        )
    # NaN is never larger, so it would pass for class 0.
    if logits.is_floating_point() and not bool(torch.isfinite(logits).all()):
        raise DataError("logits are NaN or infinite")
    best = logits[:, 0].clone()
    chosen = torch.zeros(best.shape, dtype=torch.uint8)
    for index in range(1, logits.shape[1]):
        larger = logits[:, index] > best
        best[larger] = logits[:, index][larger]
        chosen[larger] = index
    return chosen


def read_covering(path: Path, window: tuple[int, int]) -> Tensor:
    """uint8 RGB [3, H, W] at the file's own size, so that at least one window fits.

    A smaller image is scaled (bilinear, aspect kept) until it just covers the window.
    """
    image = read_image(path)
    height, width = window
    if image.height < height or image.width < width:
        if image.height * width < height * image.width:
            scaled = (-(-image.width * height // image.height), height)
        else:
            scaled = (width, -(-image.height * width // image.width))
        if scaled[0] * scaled[1] > MOST_PIXELS:
            raise DataError(f"{path}: an image of {image.width}x{image.height} is too narrow")
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    return pil_to_tensor(image)


def _overlap(starts: list[int], window: int) -> int:
    """The most windows of one axis that lie on one pixel; some window's first pixel has them."""
    return max(sum(other <= start < other + window for other in starts) for start in starts)


def _check(logits: Tensor, sums: Tensor, window: tuple[int, int], overlap: int) -> None:
    wanted = (1, sums.shape[1], *window)
    if tuple(logits.shape) != wanted or sums.shape[1] == 0:
        raise DataError(
            f"a window gave {tuple(logits.shape)} where logits [1, classes, {window[0]}, "
            f"{window[1]}] are needed; a model for sliding windows ends in logits, not in a class "
            "map: quantize it with --logits"
        )
    if sums.is_floating_point():
        return
    peak = max(abs(int(logits.min())), abs(int(logits.max())))
    if peak * overlap > INT32_MAX:
        raise DataError(
            f"{overlap} windows on one pixel with logits up to {peak} could leave int32; take a "
            "larger stride"
        )
