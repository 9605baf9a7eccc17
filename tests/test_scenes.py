import hashlib
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from iqvit.commands import scenes as scenes_command
from iqvit.errors import DataError, IqvitError
from iqvit.eval.coco_data import read_coco
from iqvit.eval.segmentation_data import read_folder
from iqvit.models.scenes import CLASSES, STUFF, THINGS, folder, scene, split_scene, write_scenes
from iqvit.models.scenes.dice import Dice, hsv, turn
from iqvit.models.scenes.shapes import CLUTTER as CLUTTER_SHAPES
from iqvit.models.scenes.shapes import THINGS as SHAPES
from iqvit.models.scenes.vectors import Vec, rotation, squares

SIZE = 96
NOTHING = 255
GOLDEN = ["158afb59189d5b78", "3d0596299964c466", "cdafc6b606bb8cd2"]


@pytest.fixture(scope="module")
def some():
    return [split_scene(0, "val", i, SIZE) for i in range(40)]


def fingerprint(made) -> str:
    parts = (made.image, made.class_map, made.things, made.boxes, made.labels, made.hidden)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    found = [fingerprint(scene(seed, (70, 91))) for seed in (0, 1, 2)]
    assert found == GOLDEN


def test_the_bytes_do_not_depend_on_wide_registers():
    code = (
        "import hashlib; from iqvit.models.scenes import scene;"
        "print([hashlib.sha256(scene(s, 64).image.tobytes()).hexdigest() for s in range(3)])"
    )
    narrow = {**os.environ, "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=narrow, capture_output=True, text=True, check=True
    )
    here = [hashlib.sha256(scene(s, 64).image.tobytes()).hexdigest() for s in range(3)]
    assert found.stdout.strip() == str(here)


def test_no_two_scenes_are_equal():
    made = [
        split_scene(seed, split, i, 32).image.tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
        for i in range(3)
    ]
    assert len(set(made)) == len(made)


def test_boxes_are_tight_around_what_is_seen(some):
    for made in some:
        assert made.image.shape == (SIZE, SIZE, 3)
        assert made.image.dtype == made.class_map.dtype == made.things.dtype == np.uint8
        assert len(made.boxes) == len(made.labels) == len(made.hidden)
        owners = set(np.unique(made.things)) - {NOTHING}
        assert owners == set(range(len(made.labels)))
        for i, (x1, y1, x2, y2) in enumerate(made.boxes.astype(int)):
            mask = made.things == i
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum()
            edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert all(edge.any() for edge in edges)


def test_the_class_map_is_that_of_the_things(some):
    for made in some:
        for i, label in enumerate(made.labels):
            assert (made.class_map[made.things == i] == len(STUFF) + label).all()
        assert (made.class_map[made.things == NOTHING] < len(STUFF)).all()


def test_every_class_appears_and_none_is_rare(some):
    shares = np.bincount(np.concatenate([m.class_map.ravel() for m in some]), minlength=12)
    assert len(CLASSES) == 12
    assert (shares / shares.sum() > 0.002).all()
    labels = np.bincount(np.concatenate([m.labels for m in some]), minlength=len(THINGS))
    assert labels.min() > 0.4 * labels.max()


def test_things_hide_each_other(some):
    hidden = sum(int(m.hidden.sum()) for m in some)
    things = sum(len(m.labels) for m in some)
    assert 0.005 * things < hidden < 0.2 * things
    for made in some:
        pixels = np.bincount(made.things.ravel(), minlength=256)[: len(made.labels)]
        assert (pixels[~made.hidden] >= 40).all()
    # Boxes that overlap are things of which one is before the other.
    overlapping = sum(_overlaps(m.boxes) for m in some)
    assert overlapping > 0.08 * things


def _overlaps(boxes: np.ndarray) -> int:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low > 4).all(2)
    return int(np.triu(common, 1).sum())


def test_pictures_differ_in_light_colour_and_noise(some):
    means = np.array([m.image.mean() for m in some])
    assert means.min() < 65
    assert means.max() > 135
    warmth = np.array([m.image[..., 0].mean() / m.image[..., 2].mean() for m in some])
    assert warmth.min() < 0.8
    assert warmth.max() > 1.25
    grain = [np.abs(np.diff(m.image.astype(int), axis=1)).mean() for m in some]
    assert max(grain) > 3 * min(grain)


@pytest.mark.parametrize("make", [*SHAPES.values(), *CLUTTER_SHAPES], ids=lambda f: f.__name__)
def test_shapes_are_distances_within_the_unit_sphere(make):
    dice, generator = Dice(3), np.random.default_rng(0)
    for _ in range(4):
        shape = make(dice)
        p = generator.uniform(-1.3, 1.3, (3, 20000)).astype(np.float32)
        step = generator.normal(0, 0.1, p.shape).astype(np.float32)
        here, there = shape.distance(p), shape.distance(p + step)
        assert here.dtype == np.float32
        # Never larger than the way to the surface, or rays would pass through it.
        assert (np.abs(here - there) <= np.sqrt(squares(step)) + 1e-5).all()
        assert (here[squares(p) > 1.02] > 0).all()
        inside = p[:, here < 0]
        assert inside.shape[1] > 20
        u = generator.normal(size=3)
        u /= np.linalg.norm(u)
        highest = float((inside.T @ u).max())
        if make.__name__ != "mug":  # whose handle may touch the floor
            assert highest <= shape.reach(Vec(*u.tolist())) + 1e-4
            assert highest >= shape.reach(Vec(*u.tolist())) - 0.35


def test_rotations_are_undone():
    turned = rotation(turn(33), turn(90), turn(200))
    field = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    assert np.allclose(turned.undo_all(turned.apply_all(field)), field, atol=1e-5)
    up = turned.undo(Vec(0.0, 1.0, 0.0))
    assert np.allclose(turned.undo_all(Vec(0.0, 1.0, 0.0).column)[:, 0], up, atol=1e-6)


def test_the_grain_is_of_mean_0_and_variance_1():
    grain = Dice(1).grain(100_001)
    assert grain.shape == (100_001,)
    assert abs(grain.mean()) < 0.02
    assert abs(grain.var() - 1) < 0.02
    assert hsv(0.0, 1.0, 1.0) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("seed", "size", "told"),
    [(0, 16, "16x16"), (0, (64, 4096), "64x4096"), (-1, 64, "seed"), ((0, -2), 64, "seed")],
)
def test_impossible_scenes_are_refused(seed, size, told):
    with pytest.raises(DataError, match=told):
        scene(seed, size)


def test_unknown_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match="split 'best'"):
        write_scenes(tmp_path / "d", "best", 2, size=32)
    with pytest.raises(DataError, match="no 0 scenes"):
        write_scenes(tmp_path / "d", "val", 0)


def test_written_scenes_are_both_kinds_of_data(tmp_path):
    seen = []
    for split, count in (("train", 2), ("val", 6)):
        write_scenes(tmp_path, split, count, 5, (64, 80), progress=lambda *done: seen.append(done))
    assert seen[-1] == (6, 6)
    made = [split_scene(5, "val", i, (64, 80)) for i in range(6)]
    maps, boxes = read_folder(tmp_path, "val"), read_coco(tmp_path, "val")
    assert maps.classes == CLASSES
    assert boxes.classes == THINGS
    assert len(maps) == len(boxes) == 6
    for i, one in enumerate(made):
        assert torch.equal(maps.image(i), torch.from_numpy(one.image).permute(2, 0, 1))
        assert torch.equal(boxes.image(i), maps.image(i))
        assert torch.equal(maps.mask(i), torch.from_numpy(one.class_map))
        item = boxes.items[i]
        assert torch.equal(item.boxes, torch.from_numpy(one.boxes))
        assert item.labels.tolist() == one.labels.tolist()
        assert item.iscrowd.tolist() == one.hidden.tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "annotations", "classes.txt", "train", "val",
    ]  # fmt: skip


def test_masks_are_those_of_the_things(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    write_scenes(tmp_path, "test", 3, 1, 64)
    found = coco.COCO(tmp_path / "annotations" / "instances_test.json")
    for i in range(3):
        made = split_scene(1, "test", i, 64)
        annotations = found.loadAnns(found.getAnnIds(imgIds=[i + 1]))
        assert len(annotations) == len(made.labels)
        for position, annotation in enumerate(annotations):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools with numpy 2
                mask = found.annToMask(annotation)
            assert (mask == (made.things == position)).all()
            assert annotation["area"] == mask.sum()


def test_run_lengths_begin_with_zeros():
    mask = np.array([[True, True, False], [True, False, True]])
    assert folder.run_lengths(mask) == {"size": [2, 3], "counts": [0, 3, 2, 1]}
    assert folder.run_lengths(~mask) == {"size": [2, 3], "counts": [3, 2, 1]}


def test_nothing_is_written_over(tmp_path):
    write_scenes(tmp_path, "val", 1, size=32)
    with pytest.raises(DataError, match="split 'val' already"):
        write_scenes(tmp_path, "val", 1, size=32)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="other classes"):
        write_scenes(tmp_path, "train", 1, size=32)
    assert not (tmp_path / "train").exists()


def test_a_full_disk_is_told_and_leaves_nothing_of_the_split(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.Image.Image, "save", full)
    with pytest.raises(IqvitError, match="No space left on device"):
        write_scenes(tmp_path, "val", 2, size=32)
    assert [p.name for p in tmp_path.iterdir()] == ["classes.txt"]


def test_the_command_writes_them(tmp_path, capsys):
    from iqvit.cli import main

    assert main(["scenes", "-o", str(tmp_path / "s"), "--count", "2", "--size", "48x64"]) == 0
    assert "2 scenes" in capsys.readouterr().out
    listed = json.loads((tmp_path / "s" / "annotations" / "instances_val.json").read_bytes())
    assert [(i["height"], i["width"]) for i in listed["images"]] == [(48, 64)] * 2
    assert main(["scenes", "-o", str(tmp_path / "s"), "--split", "dev"]) == 2
    assert "splits are train" in capsys.readouterr().err
    assert scenes_command.USUAL_SIZE == "192"
