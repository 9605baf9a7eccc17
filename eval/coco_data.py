"""Images with boxes: the layout and the JSON of COCO (Lin et al. 2014), also of other data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iqvit.errors import DataError
from iqvit.eval.coco_json import (
    Annotation,
    Category,
    ImageEntry,
    check_box,
    read_instances,
    told,
)
from iqvit.eval.preprocess import read_image
from iqvit.eval.segmentation_data import image_size

PREFIX = "instances_"


@dataclass(frozen=True, eq=False)
class CocoItem:
    """One image and its n boxes, n may be 0.

    size: (height, width) in pixels. xywh: float64 [n, 4], (x, y, width, height) in pixels exactly
    as in the file, for scoring. labels: int64 [n], class indices. iscrowd: bool [n], regions that
    are neither found nor missed. area: float64 [n] in pixels, of the object, not of its box.
    """

    path: Path
    image_id: int
    size: tuple[int, int]
    xywh: Tensor
    labels: Tensor
    iscrowd: Tensor
    area: Tensor

    @property
    def boxes(self) -> Tensor:
        """float32 [n, 4], (x1, y1, x2, y2) in pixels, cut to the image."""
        height, width = self.size
        corners = torch.cat([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], dim=1)
        limits = torch.tensor([width, height, width, height], dtype=torch.float64)
        return corners.clamp(min=0).minimum(limits).float()

    def check_size(self) -> None:
        """DataError for a file whose header is damaged or says another size than `size`."""
        found = image_size(self.path)
        if found != self.size:
            raise DataError(
                f"{self.path} has {found[0]}x{found[1]} pixels (height x width), its annotations "
                f"are for {self.size[0]}x{self.size[1]}"
            )


@dataclass(frozen=True, eq=False)
class CocoSet:
    """Images in the order of their names, those without boxes too.

    classes: names by class index, in the order of the file's category ids, which category_ids
    holds (COCO numbers its 80 categories 1..90, with gaps). skipped: what was left out, in words.
    """

    annotations: Path
    items: tuple[CocoItem, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """uint8 RGB [3, H, W]; DataError for a damaged file or one of another size than `size`."""
        item = self.items[index]
        item.check_size()
        return pil_to_tensor(read_image(item.path))


def read_coco(
    root: Path, split: str = "val", *, supercategories: bool = False, skip_bad: bool = False
) -> CocoSet:
    """`root`/annotations/instances_NAME.json with the images of `root`/NAME or `root`/images/NAME.

    NAME is `split`, or the only one that begins with it: "val" finds val2017. The other arguments,
    and what raises DataError, are those of `read_coco_file`.
    """
    annotations = _annotation_file(root, split)
    name = annotations.stem.removeprefix(PREFIX)
    places = (root / name, root / "images" / name)
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise DataError(
            f"{annotations} has no images: there is neither {places[0]} nor {places[1]}"
        )
    return read_coco_file(annotations, images, supercategories=supercategories, skip_bad=skip_bad)


def read_coco_file(
    annotations: Path, images: Path, *, supercategories: bool = False, skip_bad: bool = False
) -> CocoSet:
    """The images and boxes of a COCO instances JSON, whose file names lie in the folder `images`.

    supercategories: the classes are those groups instead, in the order of their first category id,
    and category_ids are 1, 2, ... . Raises DataError as `read_instances` does, and naming them, for
    images that are not there and annotations that cannot be used; with `skip_bad` these are left
    out and listed in `skipped`.
    """
    found = read_instances(annotations)
    faults = list(found.faults)
    boxes: dict[int, list[Annotation]] = {image.id: [] for image in found.images}
    for annotation in found.annotations:
        boxes[annotation.image_id].append(annotation)
    classes, category_ids, label_of = _classes(found.categories, supercategories, annotations)
    items: list[CocoItem] = []
    for image in found.images:
        path = images / image.file_name
        if not path.is_file():
            faults.append(f"image {image.id}: there is no {path}")
            continue
        sized, kept = _sized(image, path, boxes[image.id], faults)
        items.append(_item(sized, path, kept, label_of))
    if faults and not skip_bad:
        raise told(faults, annotations)
    if not any(len(item.labels) for item in items):
        raise DataError(f"{annotations}: no annotation can be used; the first: {faults[0]}")
    return CocoSet(annotations, tuple(items), classes, category_ids, tuple(faults))


def _annotation_file(root: Path, split: str) -> Path:
    folder = root / "annotations"
    if not folder.is_dir():
        raise DataError(f"{root} is no COCO data: there is no folder {folder}")
    exact = folder / f"{PREFIX}{split}.json"
    if exact.is_file():
        return exact
    known = sorted(folder.glob(f"{PREFIX}*.json"))
    fitting = [path for path in known if path.stem.startswith(f"{PREFIX}{split}")]
    if len(fitting) == 1:
        return fitting[0]
    if not known:
        raise DataError(f"{root} is no COCO data: {folder} holds no {PREFIX}*.json")
    names = [path.stem.removeprefix(PREFIX) for path in (fitting or known)]
    what = "is not clear" if fitting else "is not there"
    raise DataError(
        f"the split {split!r} {what}: {folder} has annotations ({PREFIX}*.json) for "
        f"{', '.join(names)}"
    )


def _classes(
    categories: Sequence[Category], supercategories: bool, path: Path
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Names and ids by class index, and the class index by category id."""
    if not supercategories:
        label_of = {category.id: index for index, category in enumerate(categories)}
        return tuple(c.name for c in categories), tuple(c.id for c in categories), label_of
    lacking = [category.name for category in categories if not category.supercategory]
    if lacking:
        raise DataError(f"{path}: the category {lacking[0]!r} has no supercategory to group by")
    names = tuple(dict.fromkeys(category.supercategory for category in categories))
    label_of = {category.id: names.index(category.supercategory) for category in categories}
    return names, tuple(range(1, len(names) + 1)), label_of


def _sized(
    image: ImageEntry, path: Path, boxes: Sequence[Annotation], faults: list[str]
) -> tuple[ImageEntry, list[Annotation]]:
    """The size from the file's header and the boxes inside it, where the JSON has no size."""
    if image.size is not None:
        return image, list(boxes)
    size = image_size(path)
    kept = []
    for box in boxes:
        try:
            check_box(box.bbox, size)
        except DataError as error:
            faults.append(f"image {image.id}: {error} ({image.file_name})")
        else:
            kept.append(box)
    return replace(image, size=size), kept


def _item(
    image: ImageEntry, path: Path, boxes: Sequence[Annotation], label_of: dict[int, int]
) -> CocoItem:
    if image.size is None:
        raise ValueError(f"{path} has no size yet")
    return CocoItem(
        path,
        image.id,
        image.size,
        torch.tensor([box.bbox for box in boxes], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([label_of[box.category_id] for box in boxes], dtype=torch.int64),
        torch.tensor([box.iscrowd for box in boxes], dtype=torch.bool),
        torch.tensor([box.area for box in boxes], dtype=torch.float64),
    )
