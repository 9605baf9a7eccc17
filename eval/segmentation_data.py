"""Images with a mask of class indices: any folder, ADE20K and Cityscapes, read alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iqvit.errors import DataError
from iqvit.eval.class_list import ADE20K, CITYSCAPES, ClassList, read_classes
from iqvit.eval.imagenet import SUFFIXES
from iqvit.eval.preprocess import read_image

IGNORE = 255
"""In the masks of `SegmentationSet`: a pixel that is neither trained on nor scored."""
UNKNOWN = -1
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Lossless ones only: JPEG would blend the indices of neighbours."""
CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""`labelIds` of the 19 classes that are evaluated, in the order of their train ids."""
CITYSCAPES_LABELS = 34

MaskItem = tuple[Path, Path]


@dataclass(frozen=True)
class SegmentationSet:
    """Images and masks, in the order of the images' names.

    palette holds RGB in 0..255 for each class. to_train_ids has 256 entries, one for each value
    that a mask file may hold: a class index, `IGNORE`, or -1 for a value that the data set does not
    have. It is applied once, in `mask`, and nowhere else.
    """

    folder: Path
    items: tuple[MaskItem, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    to_train_ids: tuple[int, ...]
    ignore: int = IGNORE

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """uint8 RGB [3, H, W]; DataError naming a damaged file."""
        return pil_to_tensor(read_image(self.items[index][0]))

    def mask(self, index: int) -> Tensor:
        """uint8 [H, W] of class indices, `IGNORE` where there is none.

        DataError for a file that cannot be read, holds a value outside the class list, or has
        another size than its image (of which only the header is read).
        """
        image, path = self.items[index]
        values = read_mask(path)
        wanted = image_size(image)
        if values.shape != wanted:
            raise DataError(
                f"{path} is a mask of {values.shape[0]}x{values.shape[1]} pixels (height x width) "
                f"for an image of {wanted[0]}x{wanted[1]}, {image}: they must be of one size"
            )
        mapped = np.array(self.to_train_ids, np.int16)[values]
        if (mapped == UNKNOWN).any():
            raise self._unknown(path, values[mapped == UNKNOWN])
        return torch.from_numpy(mapped.astype(np.uint8))

    def _unknown(self, path: Path, values: np.ndarray) -> DataError:
        found = np.unique(values)
        shown = ", ".join(str(v) for v in found[:5]) + (", ..." if len(found) > 5 else "")
        ignored = [str(v) for v, train in enumerate(self.to_train_ids) if train == IGNORE]
        unused = f"; ignored are {', '.join(ignored[:4])}" if ignored else ""
        return DataError(
            f"{path} holds the value {shown} ({len(values)} pixels), outside the list of "
            f"{len(self.classes)} classes{unused}: correct the mask, the class list or the ignore "
            "value"
        )


def read_folder(
    root: Path,
    split: str = "val",
    classes_file: Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    ignore: int | None = None,
) -> SegmentationSet:
    """`root/split/images` with `root/split/annotations`; split "." for `root` itself.

    An image and its mask have the same name but for the suffix. Masks hold class indices in the
    order of the class list: `class_names`, else `classes_file`, else `classes.txt` in the split's
    folder or in `root` (see `read_classes`). `ignore` is the value of pixels without a class, by
    default what the class list says, else 255. Raises DataError.
    """
    listed = _class_list(root, split, classes_file, class_names)
    unused = listed.ignore if ignore is None else ignore
    classes = len(listed.names)
    if not 0 <= unused <= 255 or unused < classes:
        raise DataError(
            f"the ignore value {unused} is no mask value beside the classes 0..{classes - 1}; it "
            f"lies in {classes}..255"
        )
    folder = root / split
    if not (folder / "images").is_dir() and (root / "images").is_dir():
        raise DataError(
            f"{folder} has no images/, but {root} itself does: use the split '.' if there is only "
            "one"
        )
    items = _pairs(folder / "images", folder / "annotations")
    table = _table({value: value for value in range(classes)} | {unused: IGNORE})
    return SegmentationSet(folder, items, listed.names, listed.palette, table)


def read_ade20k(root: Path, split: str = "val") -> SegmentationSet:
    """ADE20K of the 2016 scene parsing challenge: 150 classes; the folder ADEChallengeData2016.

    `root` is that folder or the one around it. Split "train" or "val" (folders `training`,
    `validation`). In its masks 0 is "other", which is not scored, and 1..150 are the classes, here
    0..149 (`reduce_zero_label` of other tools; it is done here and must not be done again).
    """
    folder = root / "ADEChallengeData2016"
    folder = folder if folder.is_dir() else root
    name = _split(split, {"train": "training", "val": "validation"})
    items = _pairs(folder / "images" / name, folder / "annotations" / name)
    count = len(ADE20K.names)
    table = _table({0: IGNORE} | {value + 1: value for value in range(count)})
    return SegmentationSet(folder, items, ADE20K.names, ADE20K.palette, table)


def read_cityscapes(root: Path, split: str = "val") -> SegmentationSet:
    """Cityscapes, fine annotations: 19 classes from the `labelIds`; the other ids are ignored.

    `root/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` with
    `root/gtFine/SPLIT/CITY/*_gtFine_labelIds.png`. The split "test" has no annotations.
    """
    name = _split(split, {"train": "train", "val": "val"})
    folder = root / "leftImg8bit" / name
    _require_folder(folder)
    _require_folder(root / "gtFine" / name)
    tail = "_leftImg8bit.png"
    images = sorted(p for p in folder.glob(f"*/*{tail}") if not p.name.startswith("."))
    if not images:
        raise DataError(f"{folder} holds no CITY/*{tail}")
    masks = [
        root
        / "gtFine"
        / name
        / image.parent.name
        / f"{image.name.removesuffix(tail)}_gtFine_labelIds.png"
        for image in images
    ]
    _require_masks(images, masks)
    unused = {value: IGNORE for value in range(CITYSCAPES_LABELS)}
    scored = {value: train for train, value in enumerate(CITYSCAPES_TRAIN_IDS)}
    items = tuple(zip(images, masks, strict=True))
    table = _table(unused | scored)
    return SegmentationSet(root, items, CITYSCAPES.names, CITYSCAPES.palette, table)


def read_mask(path: Path) -> np.ndarray:
    """The raw values of a mask, uint8 [H, W]: palette indices are not turned into colours.

    DataError for a file that is missing, damaged, coloured or of more than 8 bits.
    """
    if not path.is_file():
        raise DataError(f"no mask {path}")
    try:
        with Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable mask: {error}") from error
    if mode not in ("L", "P", "1"):
        raise DataError(
            f"{path} has the mode {mode} (colours, alpha or more than 8 bits); a mask holds one "
            "8-bit class index a pixel"
        )
    values = values.astype(np.uint8)
    bits = _grey_bits(path) if mode == "L" else 8
    # Pillow stretches 2- and 4-bit grey to 0..255; here they are indices.
    return values if bits == 8 else values // np.uint8(255 // ((1 << bits) - 1))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header of an image; DataError if it has none."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image: {error}") from error


def _grey_bits(path: Path) -> int:
    """Bits a pixel of a grey PNG, 8 for other formats (the IHDR chunk is always the first)."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 25 else 8


def _class_list(
    root: Path, split: str, file: Path | None, names: Sequence[str] | None
) -> ClassList:
    if names is not None:
        if file is not None:
            raise DataError("class names and a class file are both given; give one of them")
        return ClassList.of(names)
    if file is not None:
        return read_classes(file)
    for place in (root / split / "classes.txt", root / "classes.txt"):
        if place.is_file():
            return read_classes(place)
    raise DataError(
        f"{root} has no classes.txt, which names the class of each mask value: give a class file "
        "(one name a line) or the names themselves"
    )


def _pairs(images: Path, masks: Path) -> tuple[MaskItem, ...]:
    """Every image with the mask of the same name; DataError naming one that has none."""
    _require_folder(images)
    _require_folder(masks)
    found = _files(images, SUFFIXES)
    if not found:
        raise DataError(f"{images} holds no images ({', '.join(SUFFIXES)})")
    _require_unique(found)
    candidates = _files(masks, MASK_SUFFIXES)
    _require_unique(candidates)
    by_stem = {mask.stem: mask for mask in candidates}
    paired = [by_stem.get(image.stem, masks / f"{image.stem}.png") for image in found]
    _require_masks(found, paired)
    return tuple(zip(found, paired, strict=True))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    entries = (p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    return sorted(p for p in entries if p.is_file() and not p.name.startswith("."))


def _require_unique(files: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other is not file:
            raise DataError(f"{other} and {file} have one name, so their pair is not clear")


def _require_masks(images: Sequence[Path], masks: Sequence[Path]) -> None:
    lacking = [(i, m) for i, m in zip(images, masks, strict=True) if not m.is_file()]
    if lacking:
        image, mask = lacking[0]
        raise DataError(
            f"{len(lacking)} of {len(images)} images have no mask, for example {image}: there is "
            f"no {mask}"
        )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")


def _split(split: str, known: Mapping[str, str]) -> str:
    if split in known:
        return known[split]
    if split in known.values():
        return split
    raise DataError(f"there is no split {split!r} with annotations; it is one of {list(known)}")


def _table(known: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(known.get(value, UNKNOWN) for value in range(256))
