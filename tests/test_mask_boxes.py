"""Boxes of connected components, by hand, and the data set that the script makes of them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.coco_data import read_coco
from iqvit.eval.mask_boxes import MaskBox, instances_json, mask_boxes
from iqvit.eval.multitask_data import read_multitask, require_both
from iqvit.eval.segmentation_data import IGNORE, read_folder

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "mask_boxes.py"


def mask_of(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.uint8)


def test_corners_touch_and_sides_touch_but_gaps_do_not():
    mask = mask_of(
        "1100000",
        "0011001",
        "0000001",
    )
    assert mask_boxes(mask, [1], least=1) == (
        MaskBox(1, (0, 0, 4, 2), 4),
        MaskBox(1, (6, 1, 1, 2), 2),
    )


def test_classes_do_not_join_and_void_has_no_box():
    mask = mask_of("1212", "1212")
    mask[1, 3] = IGNORE
    assert mask_boxes(mask, [2, 1], least=1) == (
        MaskBox(2, (1, 0, 1, 2), 2),
        MaskBox(2, (3, 0, 1, 1), 1),
        MaskBox(1, (0, 0, 1, 2), 2),
        MaskBox(1, (2, 0, 1, 2), 2),
    )
    assert mask_boxes(mask, [3], least=1) == ()


def test_a_hundred_pixels_are_enough():
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[2:12, 5:15] = 3
    mask[20:30, 5:15] = 3
    mask[29, 14] = 0
    assert mask_boxes(mask, [3]) == (MaskBox(3, (5, 2, 10, 10), 100),)
    assert [box.area for box in mask_boxes(mask, [3], least=99)] == [100, 99]


def test_a_box_holds_exactly_the_pixels_of_its_component():
    random = np.random.default_rng(0)
    mask = torch.from_numpy((random.random((30, 30)) < 0.3).astype(np.uint8))
    boxes = mask_boxes(mask, [1], least=1)
    assert sum(box.area for box in boxes) == int(mask.sum())
    for box in boxes:
        x, y, width, height = box.bbox
        part = mask[y : y + height, x : x + width]
        assert part.any(0)[[0, -1]].all()
        assert part.any(1)[[0, -1]].all()


@pytest.fixture
def masks(tmp_path):
    """Two images with a mask; a bar of class 1 in the first, of class 2 in the second."""
    for part in ("images", "annotations"):
        (tmp_path / "data" / "val" / part).mkdir(parents=True)
    for index, label in ((0, 1), (1, 2)):
        mask = np.zeros((30, 40), np.uint8)
        mask[10:20, 5:25] = label
        Image.fromarray(mask).save(tmp_path / "data" / "val" / "annotations" / f"{index}.png")
        Image.fromarray(mask).convert("RGB").save(
            tmp_path / "data" / "val" / "images" / f"{index}.png"
        )
    (tmp_path / "classes.txt").write_text("ground\nred\ngreen\n")
    return tmp_path


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mask_boxes.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


def test_the_script_makes_data_that_everything_reads(masks, monkeypatch, capsys):
    given = [masks / "data", masks / "out", "--class-file", masks / "classes.txt"]
    options = ["--splits", "val", "--classes", "green,red"]
    for _ in range(2):  # a second time changes nothing
        assert run_script(monkeypatch, *given, *options) == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t") == ["val", "2", "green 1", "red 1"]
    found = read_coco(masks / "out", "val")
    assert found.classes == ("green", "red")
    assert [item.labels.tolist() for item in found.items] == [[1], [0]]
    assert found.items[0].xywh.tolist() == [[5, 10, 20, 10]]
    assert found.items[0].area.tolist() == [200]
    both = require_both(read_multitask(masks / "out", "val"), masks)
    assert (len(both), both.masks.classes) == (2, ("ground", "red", "green"))
    for index in range(2):
        x, y, width, height = both.item(index).xywh[0].int().tolist()
        label = 1 + index
        assert (both.mask(index)[y : y + height, x : x + width] == label).all()


def test_the_script_tells_mistakes(masks, monkeypatch, capsys):
    given = [masks / "data", masks / "out", "--class-file", masks / "classes.txt"]
    code = run_script(monkeypatch, *given, "--splits", "val", "--classes", "red,blue")
    assert code == 2
    assert "no class 'blue'" in capsys.readouterr().err
    (masks / "out" / "val" / "images").mkdir(parents=True)
    assert run_script(monkeypatch, *given, "--splits", "val", "--classes", "red") == 2
    assert "is there already, and is no link to" in capsys.readouterr().err


def test_no_names_are_refused(masks):
    data = read_folder(masks / "data", "val", masks / "classes.txt")
    with pytest.raises(DataError, match="its classes are ground, red, green"):
        instances_json(data, [])


# One folder with masks and boxes


def test_one_of_the_annotations_may_be_missing(masks_and_boxes, tmp_path):
    (tmp_path / "val").symlink_to(masks_and_boxes / "val")
    (tmp_path / "classes.txt").write_text((masks_and_boxes / "classes.txt").read_text())
    without = read_multitask(tmp_path, "val")
    assert (without.boxes, len(without)) == (None, 3)
    with pytest.raises(DataError, match="has no boxes; to train both heads"):
        require_both(without, tmp_path)
    with pytest.raises(DataError, match=r"neither masks in .*test.* nor boxes"):
        read_multitask(tmp_path, "test")


def test_an_image_may_have_one_of_them(masks_and_boxes, tmp_path):
    for part in ("val", "classes.txt"):
        (tmp_path / part).symlink_to(masks_and_boxes / part)
    path = masks_and_boxes / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    first = content["images"].pop(0)["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != first]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    data = read_multitask(tmp_path, "val")
    assert [(item.mask, item.boxes) for item in data.items] == [(0, None), (1, 0), (2, 1)]
    both = require_both(data, tmp_path)
    assert both.pairs == ((1, 0), (2, 1))
    assert both.item(0).path.name == "1.png"
