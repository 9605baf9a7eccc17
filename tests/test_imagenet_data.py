import contextlib
import random

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from iqvit.errors import DataError
from iqvit.eval.imagenet import choose, list_images, read_imagenet
from iqvit.eval.preprocess import Preprocess, batches, load_images, read_image


def save(path, size=(40, 30), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).convert(mode).save(path)
    return path


def test_names_that_begin_with_the_class(tmp_path):
    for name in ("0002_b.png", "0000_n01_tench.jpg", "10-c.PNG", "README.md", ".hidden.png"):
        if name.lower().endswith(("png", "jpg")):
            save(tmp_path / name)
        else:
            (tmp_path / name).write_text("not an image")
    found = read_imagenet(tmp_path)
    assert [(p.name, label) for p, label in found.items] == [
        ("0000_n01_tench.jpg", 0),
        ("0002_b.png", 2),
        ("10-c.PNG", 10),
    ]
    assert found.classes is None


def test_a_folder_per_class(tmp_path):
    save(tmp_path / "dog" / "images" / "2.png")
    save(tmp_path / "dog" / "1.png")
    save(tmp_path / "cat" / "z.JPEG")
    (tmp_path / "empty").mkdir()
    save(tmp_path / ".cache" / "x.png")
    found = read_imagenet(tmp_path)
    assert found.classes == ("cat", "dog", "empty")
    assert [(p.name, label) for p, label in found.items] == [
        ("z.JPEG", 0),
        ("1.png", 1),
        ("2.png", 1),
    ]
    assert list_images(tmp_path) == tuple(p for p, _ in found.items)


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_imagenet(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no images"):
        read_imagenet(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        list_images(tmp_path)
    image = save(tmp_path / "0001_a.png")
    with pytest.raises(DataError, match="is a file"):
        read_imagenet(image)
    save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"mixes two layouts.*0001_a\.png.*cat/"):
        read_imagenet(tmp_path)


def test_names_without_class_index_are_counted(tmp_path):
    for name in ("0001_a.png", "a.png", "0002.png"):
        save(tmp_path / name)
    with pytest.raises(DataError, match=r"2 of 3 .*0002\.png, a\.png"):
        read_imagenet(tmp_path)


def test_choice_is_nested_and_independent_of_place_order_and_reader(tmp_path):
    for place in ("here", "there"):
        for i in range(12):
            save(tmp_path / place / f"c{i % 3}" / f"{i}.png", size=(2, 2))
    items = read_imagenet(tmp_path / "here").items
    chosen = choose(items, 5, seed=1)
    assert choose(items, 3, seed=1) == chosen[:3]
    assert choose(items[::-1], 5, seed=1) == chosen
    assert choose(items, 5, seed=2) != chosen
    assert choose(list_images(tmp_path / "here"), 5, seed=1) == [p for p, _ in chosen]
    elsewhere = choose(list_images(tmp_path / "there"), 5, seed=1)
    assert [p.name for p in elsewhere] == [p.name for p, _ in chosen]
    assert choose(items, 0) == []
    with pytest.raises(DataError, match="13 images asked for where there are 12"):
        choose(items, 13)


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 200), (20, 16)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
def test_preprocessing_equals_torchvision(tmp_path, size, mode):
    path = save(tmp_path / "a.png", size=size)
    usual = v2.Compose(
        [
            v2.Resize(36, interpolation=v2.InterpolationMode(mode)),
            v2.CenterCrop(32),
            v2.PILToTensor(),
        ]
    )
    ours = Preprocess((32, 32), (36, 36), interpolation=mode)(path)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, usual(read_image(path)))


def test_squash_ignores_the_aspect(tmp_path):
    path = save(tmp_path / "a.png", size=(50, 20))
    ours = Preprocess((24, 32), crop="squash", interpolation="bilinear")(path)
    expected = read_image(path).resize((32, 24), Image.Resampling.BILINEAR)
    assert torch.equal(ours, v2.functional.pil_to_tensor(expected))


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    path = save(tmp_path / "a.png", size=(32, 24))
    ours = Preprocess((24, 32), (30, 40))(path)
    assert torch.equal(ours, v2.functional.pil_to_tensor(Image.open(path)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    assert Preprocess((30, 40))(save(tmp_path / "a.png", mode=mode)).shape == (3, 30, 40)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (8, 8))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "a.png").mode == "RGB"


def test_images_that_are_refused_by_name(tmp_path):
    preprocess = Preprocess((8, 8))
    with pytest.raises(DataError, match=r"no image .*gone\.png"):
        preprocess(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"is a folder where an image is needed"):
        preprocess(tmp_path)
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits"):
        preprocess(tmp_path / "deep.png")
    Image.new("L", (1, 9000)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip\.png.*too narrow"):
        Preprocess((224, 224))(tmp_path / "strip.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_damaged_files_are_data_errors(tmp_path, suffix):
    whole = save(tmp_path / f"a.{suffix}").read_bytes()
    bad = tmp_path / f"bad.{suffix}"
    chance = random.Random(0)
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable image"):
        read_image(bad)
    for _ in range(60):
        damaged = bytearray(whole[: chance.randrange(1, len(whole))])
        for _ in range(3):
            damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
        bad.write_bytes(damaged)
        # Some damage leaves an image; any other is told as a DataError and nothing else.
        with contextlib.suppress(DataError):
            read_image(bad)


def test_batches_count_what_they_skip(tmp_path):
    paths = [save(tmp_path / f"{i}.png", size=(8, 8), seed=i) for i in range(5)]
    paths[1].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png is not a readable image"):
        list(batches(paths, Preprocess((8, 8)), batch=2))
    skipped = []
    found = list(batches(paths, Preprocess((8, 8)), batch=2, skip_bad=True, skipped=skipped))
    assert [b.indices for b in found] == [(0, 2), (3, 4)]
    assert [b.images.shape[0] for b in found] == [2, 2]
    assert len(skipped) == 1
    assert torch.equal(load_images(paths[2:3], Preprocess((8, 8))), found[0].images[1:])


def test_preprocess_dictionary_round_trip():
    made = Preprocess((24, 32), (30, 40), "squash", "bilinear")
    assert Preprocess.from_dict(made.to_dict()) == made
    with pytest.raises(DataError, match="keys"):
        Preprocess.from_dict({"size": [8, 8], "zoom": 2})
    with pytest.raises(DataError, match=r"not \[height, width\]"):
        Preprocess.from_dict({"size": 8})
    with pytest.raises(DataError, match="cannot be cut"):
        Preprocess((8, 8), (7, 9))
    with pytest.raises(DataError, match="'nearly'"):
        Preprocess((8, 8), interpolation="nearly")
