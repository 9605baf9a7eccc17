"""Makes a data set with masks and boxes of one that has masks alone.

    python benchmarks/mask_boxes.py camvid/ camvid_boxes/ --class-file benchmarks/camvid.txt

OUT/SPLIT/images and OUT/SPLIT/annotations are links to those of DATA, OUT/classes.txt is the class
list, and OUT/annotations/instances_SPLIT.json has a box for every 8-connected component (pixels of
one class that touch at a side or a corner) of at least --least pixels in the masks of the classes
--classes.
`iqvit eval segmentation`, `eval coco`, `eval multitask` and `train multitask` read OUT.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from iqvit.errors import DataError, IqvitError
from iqvit.eval.mask_boxes import LEAST_PIXELS, instances_json, write_instances
from iqvit.eval.segmentation_data import read_folder
from iqvit.files import write_atomically

CAMVID = "Car,Pedestrian,Bicyclist,SignSymbol"


def link(source: Path, place: Path) -> None:
    """`place` becomes a link to the folder `source`; DataError where something else lies there."""
    if place.is_symlink() and place.resolve() == source.resolve():
        return
    if place.exists() or place.is_symlink():
        raise DataError(f"{place} is there already, and is no link to {source}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(source.resolve())


def make(
    data: Path, out: Path, class_file: Path, splits: list[str], names: list[str], least: int
) -> dict[str, Counter[str]]:
    """Write the data set; how many boxes of each class every split has."""
    counts = {}
    for split in splits:
        content = instances_json(read_folder(data, split, class_file), names, least)
        for part in ("images", "annotations"):
            link(data / split / part, out / split / part)
        write_instances(out / "annotations" / f"instances_{split}.json", content)
        counts[split] = Counter(names[row["category_id"] - 1] for row in content["annotations"])
    write_atomically(out / "classes.txt", class_file.read_bytes())
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--class-file", type=Path, required=True)
    parser.add_argument("--splits", default="train,val")
    parser.add_argument("--classes", default=CAMVID)
    parser.add_argument("--least", type=int, default=LEAST_PIXELS, metavar="PIXELS")
    given = parser.parse_args()
    splits, names = given.splits.split(","), given.classes.split(",")
    try:
        counts = make(given.data, given.out, given.class_file, splits, names, given.least)
    except IqvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, count in counts.items():
        print(split, count.total(), *(f"{name} {count[name]}" for name in names), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
