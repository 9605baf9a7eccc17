"""Reading data in COCO's layout, and what is wrong with it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.coco_data import read_coco, read_coco_file

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 13, "name": "stop sign", "supercategory": "outdoor"},
    {"id": 84, "name": "book", "supercategory": "indoor"},
]
SIZES = {7: (30, 40), 3: (20, 50), 5: (16, 16)}


def box(image, category, bbox, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def content():
    """Three images of which the last has no boxes; ids are neither in order nor without gaps."""
    return {
        "images": [
            {"id": key, "file_name": f"{9 - key}.png", "height": size[0], "width": size[1]}
            for key, size in SIZES.items()
        ],
        "categories": CATEGORIES,
        "annotations": [
            box(7, 90, [1.5, 2, 10, 20.25], id=4, area=123.5, iscrowd=0),
            box(3, 1, [0, 0, 50, 20], id=0, iscrowd=1),
            box(7, 84, [30, 10, 10.75, 5], id=9),
        ],
    }


@pytest.fixture
def write(tmp_path):
    """Writes images and annotations (`content()` for None); returns the root."""

    def make(data=None, name="val2017", files=tuple(SIZES)):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / name).mkdir(exist_ok=True)
        for key in files:
            pixels = np.full((*SIZES[key], 3), key, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{9 - key}.png")
        text = json.dumps(content() if data is None else data)
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(text)
        return tmp_path

    return make


def test_ids_become_class_indices(write):
    found = read_coco(write(), "val")
    assert found.classes == ("person", "stop sign", "book", "toothbrush")
    assert found.category_ids == (1, 13, 84, 90)
    assert [item.path.name for item in found.items] == ["2.png", "4.png", "6.png"]
    assert [item.image_id for item in found.items] == [7, 5, 3]
    first, empty, crowd = found.items
    assert first.labels.tolist() == [3, 2]
    assert first.xywh.tolist() == [[1.5, 2, 10, 20.25], [30, 10, 10.75, 5]]
    assert first.area.tolist() == [123.5, 10.75 * 5]
    assert first.boxes.dtype == torch.float32
    # The second box leaves the image of 40 columns by less than a pixel and is cut.
    assert first.boxes.tolist() == [[1.5, 2, 11.5, 22.25], [30, 10, 40, 15]]
    assert crowd.iscrowd.tolist() == [True]
    assert empty.labels.shape == (0,)
    assert empty.boxes.shape == (0, 4)
    assert found.image(0).shape == (3, 30, 40)
    assert found.image(2).unique().tolist() == [3]


def test_supercategories_in_the_order_of_the_ids(write):
    found = read_coco(write(), "val2017", supercategories=True)
    assert found.classes == ("person", "outdoor", "indoor")
    assert found.category_ids == (1, 2, 3)
    assert found.items[0].labels.tolist() == [2, 2]


def test_images_may_lie_in_a_folder_images(write):
    root = write(name="val")
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val")
    assert len(read_coco(root, "val")) == 3
    (root / "images" / "val").rename(root / "elsewhere")
    with pytest.raises(DataError, match="has no images"):
        read_coco(root, "val")
    assert len(read_coco_file(root / "annotations" / "instances_val.json", root / "elsewhere")) == 3


def test_splits(write):
    root = write()
    with pytest.raises(DataError, match=r"'train' is not there: .* for val2017"):
        read_coco(root, "train")
    write(name="val2014")
    with pytest.raises(DataError, match=r"'val' is not clear: .* for val2014, val2017"):
        read_coco(root, "val")
    assert read_coco(root, "val2014").annotations.name == "instances_val2014.json"
    with pytest.raises(DataError, match="no folder"):
        read_coco(root / "nowhere", "val")


def test_sizes_that_the_file_does_not_say_are_read(write):
    data = content()
    for image in data["images"]:
        del image["height"], image["width"]
    assert [item.size for item in read_coco(write(data)).items] == [(30, 40), (16, 16), (20, 50)]
    data["annotations"].append(box(5, 1, [0, 0, 20, 5]))
    with pytest.raises(DataError, match="outside its image of 16x16"):
        read_coco(write(data))
    assert len(read_coco(write(data), skip_bad=True).items[1].labels) == 0


def test_an_image_of_another_size_is_found_when_it_is_read(write):
    data = content()
    data["images"][0]["height"] = 60
    found = read_coco(write(data))
    with pytest.raises(DataError, match=r"2\.png has 30x40 pixels .* for 60x40"):
        found.image(0)


BAD_ANNOTATIONS = {
    "image": (box(8, 1, [0, 0, 5, 5], id=77), "annotation 77: there is no image with the id 8"),
    "category": (box(5, 2, [0, 0, 5, 5], id=77), r"no category with the id 2 \(4\.png\)"),
    "width": (box(5, 1, [3, 3, 0, 5], id=77), r"\[3, 3, 0, 5\] has no size \(4\.png\)"),
    "height": (box(5, 1, [3, 3, 5, -1], id=77), "has no size"),
    "right": (box(5, 1, [10, 0, 8, 5], id=77), "outside its image of 16x16"),
    "left": (box(5, 1, [-3, 0, 8, 5], id=77), "outside its image"),
    "beyond": (box(5, 1, [16.2, 0, 0.5, 5], id=77), "outside its image"),
    "above": (box(5, 1, [0, -0.9, 5, 0.8], id=77), "outside its image"),
    "three": (box(5, 1, [0, 0, 5], id=77), r"bbox is \[0, 0, 5\], not"),
    "text": (box(5, 1, [0, 0, 5, "5"], id=77), "bbox is"),
    "nan": (box(5, 1, [0, 0, 5, float("nan")]), "annotation number 4: bbox is"),
    "absent": ({"image_id": 5, "category_id": 1, "id": 77}, "bbox is None"),
    "area": (box(5, 1, [0, 0, 5, 5], id=77, area=-1), "area is -1"),
    "crowd": (box(5, 1, [0, 0, 5, 5], id=77, iscrowd=2), "iscrowd 2"),
    "list": ([], "annotation number 4: .* is no object"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_annotations_that_cannot_be_used(write, case):
    wrong, message = BAD_ANNOTATIONS[case]
    data = content()
    data["annotations"].append(wrong)
    with pytest.raises(DataError, match=f"(?s)1 entries cannot be used.*{message}.*--skip-bad"):
        read_coco(write(data))
    found = read_coco(write(data), skip_bad=True)
    assert len(found.skipped) == 1
    assert len(found.items[1].labels) == 0
    assert sum(len(item.labels) for item in found.items) == 3


def test_images_that_are_not_there(write):
    root = write(files=(3, 5))
    with pytest.raises(DataError, match=r"(?s)image 7: there is no .*2\.png"):
        read_coco(root)
    found = read_coco(root, skip_bad=True)
    assert [item.image_id for item in found.items] == [5, 3]
    assert len(found.skipped) == 1


def test_nothing_left(write):
    data = content()
    for annotation in data["annotations"]:
        annotation["bbox"][2] = 0
    with pytest.raises(DataError, match=r"(?s)3 entries cannot be used"):
        read_coco(write(data))
    with pytest.raises(DataError, match="no annotation can be used; the first: annotation 4"):
        read_coco(write(data), skip_bad=True)


def changed(**fields):
    return {**content(), **fields}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(annotations=[]), "list of annotations is empty"),
        (changed(images=[]), "list of images is empty"),
        (changed(categories=[]), "list of categories is empty"),
        (changed(annotations={}), "not COCO instances JSON: it has no list 'annotations'"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "holds a list"),
        ({"info": 1}, "no list 'categories'"),
        (changed(images=[{"id": 1}]), "lacks a whole `id` or a `file_name`"),
        (changed(images=[{"id": "1", "file_name": "a.png"}]), "lacks a whole `id`"),
        (changed(images=content()["images"][:1] * 2), "two images have the id 7"),
        (changed(categories=[{"id": 1, "name": ""}]), "lacks a whole `id` or a `name`"),
        (
            changed(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
            "two categories have the name 'a'",
        ),
        (
            changed(images=[{"id": 1, "file_name": "a.png", "height": 0, "width": 3}]),
            r"height and width \(0, 3\)",
        ),
    ],
)
def test_files_that_are_not_coco(write, data, message):
    root = write(data)
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=message):
            read_coco(root, skip_bad=skip_bad)


def test_files_that_are_not_json(write, tmp_path):
    root = write()
    path = root / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not JSON"):
        read_coco(root)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not JSON"):
        read_coco(root)
    with pytest.raises(DataError, match="cannot be read"):
        read_coco_file(tmp_path / "none.json", root / "val2017")


def test_groups_need_names(write):
    data = content()
    data["categories"] = [{**entry} for entry in CATEGORIES]
    del data["categories"][2]["supercategory"]
    with pytest.raises(DataError, match="'stop sign' has no supercategory"):
        read_coco(write(data), supercategories=True)
    assert len(read_coco(write(data)).classes) == 4


def test_a_folder_of_other_annotations_is_told(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "00001.png").touch()
    with pytest.raises(DataError, match=r"is no COCO data: .*annotations holds no instances_\*"):
        read_coco(tmp_path, "val")
