import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.class_list import ADE20K, CITYSCAPES, ClassList, distinct_colours, read_classes
from iqvit.eval.segmentation_data import (
    CITYSCAPES_TRAIN_IDS,
    read_ade20k,
    read_cityscapes,
    read_folder,
    read_mask,
)


def save_image(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)
    return path


def save_mask(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if mode == "P":
        image.putpalette([255 - i // 3 for i in range(768)])
    image.save(path)
    return path


def folder_of_two(root, split="val", classes="sky\nroad\n"):
    for name in ("b", "a"):
        save_image(root / split / "images" / f"{name}.jpg")
        save_mask(root / split / "annotations" / f"{name}.png", [[0, 1, 255, 0, 1, 1]] * 4)
    (root / "classes.txt").write_text(classes)
    return root


def test_a_folder_in_the_order_of_names(tmp_path):
    found = read_folder(folder_of_two(tmp_path))
    assert [(i.name, m.name) for i, m in found.items] == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    assert (found.classes, len(found)) == (("sky", "road"), 2)
    assert found.palette == distinct_colours(2)
    assert found.image(0).shape == (3, 4, 6)
    assert found.mask(1).dtype == torch.uint8
    assert found.mask(1)[0].tolist() == [0, 1, 255, 0, 1, 1]


def test_a_folder_without_splits(tmp_path):
    root = folder_of_two(tmp_path, split=".")
    assert len(read_folder(root, ".")) == 2
    with pytest.raises(DataError, match=r"use the split '\.'"):
        read_folder(root, "val")


def test_a_class_list_from_elsewhere_with_another_ignore_value(tmp_path):
    root = folder_of_two(tmp_path / "data")
    listed = tmp_path / "list.txt"
    listed.write_text("# made by hand\nignore = 9\n\nblue sky 1 2 3\nroad\nroute 66\n")
    found = read_folder(root, "val", listed)
    assert found.classes == ("blue sky", "road", "route 66")
    assert found.palette == ((1, 2, 3), *distinct_colours(3)[1:])
    with pytest.raises(DataError, match=r"a\.png holds the value 255 \(4 pixels\).*ignored are 9"):
        found.mask(0)
    again = read_folder(root, "val", listed, ignore=255)
    assert again.mask(0)[0].tolist() == [0, 1, 255, 0, 1, 1]
    named = read_folder(root, "val", class_names=["x", "y "])
    assert named.classes == ("x", "y")


def test_the_class_list_of_camvid_is_one(request):
    listed = read_classes(request.config.rootpath / "benchmarks" / "camvid.txt")
    assert (len(listed.names), listed.ignore) == (11, 11)
    assert listed.names[0] == "Sky"
    assert listed.palette[-1] == (0, 128, 192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 classes"),
        ("a\na\n", "repeated"),
        ("a 1 2 256\n", r"line 1: '256' is no whole number"),
        ("b\na 1 -2 3\n", r"line 2: '-2' is no whole number"),
        ("a\nignore = none\n", "line 2: 'none'"),
        ("\n".join(f"c{i}" for i in range(256)), "256 classes"),
    ],
)
def test_class_lists_that_are_none(tmp_path, text, message):
    listed = tmp_path / "classes.txt"
    listed.write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(listed)


def test_a_class_list_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt"):
        read_classes(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"stra\xdfe")
    with pytest.raises(DataError, match=r"latin\.txt"):
        read_classes(tmp_path / "latin.txt")


def test_what_a_folder_lacks(tmp_path):
    with pytest.raises(DataError, match=r"no classes\.txt"):
        read_folder(tmp_path)
    root = folder_of_two(tmp_path)
    with pytest.raises(DataError, match="both given"):
        read_folder(root, "val", root / "classes.txt", class_names=["a"])
    with pytest.raises(DataError, match=r"no folder .*train"):
        read_folder(root, "train")
    with pytest.raises(DataError, match="ignore value 1"):
        read_folder(root, ignore=1)
    (root / "val" / "annotations" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images have no mask, for example .*b\.jpg"):
        read_folder(root)
    for image in (root / "val" / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="holds no images"):
        read_folder(root)


def test_one_name_twice(tmp_path):
    root = folder_of_two(tmp_path)
    save_image(root / "val" / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have one name"):
        read_folder(root)


def test_image_and_mask_of_different_size(tmp_path):
    found = read_folder(folder_of_two(tmp_path))
    save_mask(found.items[0][1], [[0, 1]])
    with pytest.raises(DataError, match=r"a\.png is a mask of 1x2 .* image of 4x6.*a\.jpg"):
        found.mask(0)


def test_many_values_outside_the_list_are_shortened(tmp_path):
    found = read_folder(folder_of_two(tmp_path))
    save_mask(found.items[0][1], np.arange(24).reshape(4, 6) + 2)
    with pytest.raises(DataError, match=r"the value 2, 3, 4, 5, 6, \.\.\. \(24 pixels\)"):
        found.mask(0)


def test_palette_indices_stay_indices(tmp_path):
    path = save_mask(tmp_path / "p.png", [[0, 1, 2, 3]], mode="P")
    with Image.open(path) as image:
        assert image.mode == "P"
    assert read_mask(path).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("bits", "values"), [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 5, 11, 15])])
def test_grey_of_few_bits_is_not_stretched(tmp_path, bits, values):
    packed = 0
    for value in values:
        packed = packed << bits | value
    row = bytes([0]) + (packed << (-bits * len(values) % 8)).to_bytes(
        -(-bits * len(values) // 8), "big"
    )

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    path = tmp_path / "grey.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    assert read_mask(path).tolist() == [values]


def test_what_is_no_mask(tmp_path):
    with pytest.raises(DataError, match="no mask"):
        read_mask(tmp_path / "absent.png")
    with pytest.raises(DataError, match="mode RGB"):
        read_mask(save_image(tmp_path / "colour.png"))
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        read_mask(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png is not a readable mask"):
        read_mask(tmp_path / "text.png")


@pytest.mark.parametrize("inside", [True, False])
def test_ade20k_shifts_its_classes_once(tmp_path, inside):
    root = tmp_path / "ADEChallengeData2016"
    save_image(root / "images" / "validation" / "ADE_val_1.jpg")
    save_mask(root / "annotations" / "validation" / "ADE_val_1.png", [[0, 1, 2, 149, 150, 13]] * 4)
    found = read_ade20k(root if inside else tmp_path)
    assert found.mask(0)[0].tolist() == [255, 0, 1, 148, 149, 12]
    assert (found.classes[0], found.classes[12], found.classes[149]) == ("wall", "person", "flag")
    assert len(found.palette) == len(set(found.palette)) == 150
    save_mask(found.items[0][1], [[151] * 6] * 4)
    with pytest.raises(DataError, match="the value 151"):
        found.mask(0)
    with pytest.raises(DataError, match="no split 'test'"):
        read_ade20k(root, "test")
    with pytest.raises(DataError, match=r"no folder .*training"):
        read_ade20k(root, "train")


def test_cityscapes_takes_train_ids(tmp_path):
    image = save_image(tmp_path / "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png")
    mask = tmp_path / "gtFine/val/ulm/ulm_0_1_gtFine_labelIds.png"
    with pytest.raises(DataError, match=r"no folder .*gtFine"):
        read_cityscapes(tmp_path)
    mask.parent.mkdir(parents=True)
    with pytest.raises(DataError, match=r"no mask.*ulm_0_1_gtFine_labelIds\.png"):
        read_cityscapes(tmp_path)
    save_mask(mask, [[7, 33, 0, 6, 26, 29]] * 4)
    found = read_cityscapes(tmp_path)
    assert found.items == ((image, mask),)
    assert found.mask(0)[0].tolist() == [0, 18, 255, 255, 13, 255]
    assert found.classes[13] == "car"
    save_mask(mask, [[34] * 6] * 4)
    with pytest.raises(DataError, match="the value 34"):
        found.mask(0)
    (tmp_path / "leftImg8bit/train/ulm").mkdir(parents=True)
    (tmp_path / "gtFine/train").mkdir()
    with pytest.raises(DataError, match="holds no CITY"):
        read_cityscapes(tmp_path, "train")


def test_the_built_in_lists():
    assert (len(ADE20K.names), len(CITYSCAPES.names), len(CITYSCAPES_TRAIN_IDS)) == (150, 19, 19)
    assert distinct_colours(3) == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert len(set(distinct_colours(255))) == 255
    with pytest.raises(DataError, match="empty or repeated"):
        ClassList.of(["a", " "])
