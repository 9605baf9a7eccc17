"""Images with masks and boxes in one folder, of which either may be missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iqvit.errors import DataError
from iqvit.eval.coco_data import PREFIX, CocoItem, CocoSet, read_coco
from iqvit.eval.segmentation_data import SegmentationSet, read_folder


@dataclass(frozen=True)
class Place:
    """An image and where it stands in the masks and in the boxes; None where it has none."""

    path: Path
    mask: int | None
    boxes: int | None


@dataclass(frozen=True, eq=False)
class MultitaskSet:
    """The images of both, in the order of their paths; one of masks and boxes may be None."""

    masks: SegmentationSet | None
    boxes: CocoSet | None
    items: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def of(cls, masks: SegmentationSet | None, boxes: CocoSet | None) -> "MultitaskSet":
        """An image of both is known by its file, whatever the way to it is called."""
        by_mask = {} if masks is None else _places([image for image, _ in masks.items])
        by_boxes = {} if boxes is None else _places([item.path for item in boxes.items])
        files = sorted(by_mask.keys() | by_boxes.keys())
        return cls(masks, boxes, tuple(Place(f, by_mask.get(f), by_boxes.get(f)) for f in files))


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Images that have a mask and boxes, which training needs."""

    masks: SegmentationSet
    boxes: CocoSet
    pairs: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> Tensor:
        """uint8 RGB [3, H, W]; DataError."""
        return self.boxes.image(self.pairs[index][1])

    def mask(self, index: int) -> Tensor:
        """uint8 [H, W]; see `SegmentationSet.mask`."""
        return self.masks.mask(self.pairs[index][0])

    def item(self, index: int) -> CocoItem:
        """The boxes."""
        return self.boxes.items[self.pairs[index][1]]


def read_multitask(
    root: Path,
    split: str = "val",
    class_file: Path | None = None,
    *,
    skip_bad: bool = False,
) -> MultitaskSet:
    """`root`/SPLIT/images with the masks of `root`/SPLIT/annotations and the boxes of
    `root`/annotations/instances_SPLIT.json, whose file names begin with "images/".

    What of the two is not there is None. Masks are read by `read_folder`, boxes by `read_coco`;
    DataError as they raise it, and where there is neither.
    """
    has_masks = (root / split / "annotations").is_dir()
    has_boxes = any((root / "annotations").glob(f"{PREFIX}{split}*.json"))
    if not has_masks and not has_boxes:
        raise DataError(
            f"{root} has neither masks in {root / split / 'annotations'} nor boxes in "
            f"{root / 'annotations' / f'{PREFIX}{split}.json'}"
        )
    masks = read_folder(root, split, class_file) if has_masks else None
    boxes = read_coco(root, split, skip_bad=skip_bad) if has_boxes else None
    return MultitaskSet.of(masks, boxes)


def require_both(data: MultitaskSet, place: Path) -> LabelledSet:
    """The images that have both; DataError where masks, boxes, or such images are missing."""
    for what, known in (("masks", data.masks), ("boxes", data.boxes)):
        if known is None:
            raise DataError(f"{place} has no {what}; to train both heads it needs masks and boxes")
    masks, boxes = data.masks, data.boxes
    pairs = tuple(
        (item.mask, item.boxes)
        for item in data.items
        if item.mask is not None and item.boxes is not None
    )
    if masks is None or boxes is None or not pairs:
        raise DataError(f"{place}: no image has both a mask and an entry among the boxes")
    return LabelledSet(masks, boxes, pairs)


def _places(paths: Sequence[Path]) -> dict[Path, int]:
    return {path.resolve(): index for index, path in enumerate(paths)}
