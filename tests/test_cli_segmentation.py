"""`eval segmentation|ade20k|cityscapes` and `predict` of class maps, through `iqvit.cli.main`."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import iqvit
from iqvit import tvm_backend
from iqvit.cli import main
from iqvit.eval.preprocess import Preprocess, read_image
from iqvit.eval.segmentation_data import read_mask
from iqvit.eval.sliding import sliding_logits
from iqvit.models.segmenter import Segmenter, SegmenterConfig
from iqvit.models.segmenter_folder import SegmenterMeta, save_segmenter

LABELS = ("sky", "road", "tree", "car")
PALETTE = ((0, 0, 255), (90, 90, 90), (0, 200, 0), (255, 0, 0))
WINDOW = (32, 48)
COUNT = 3


def make_segmenter(folder, classes=4, labels=LABELS, palette=PALETTE):
    sizes = {"patch_size": 8, "width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Segmenter(SegmenterConfig(WINDOW, classes, **sizes))
        # Wide enough that every class wins somewhere.
        torch.nn.init.normal_(network.decoder.head.weight, std=2.0)
    half = (0.5, 0.5, 0.5)
    save_segmenter(folder, network.eval(), SegmenterMeta(labels, half, half, palette))


def write_data(folder):
    """Images of 40 x 70 pixels, with masks of 4 classes and the ignore value 9."""
    for name in ("images", "annotations"):
        (folder / "val" / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(COUNT):
        pixels = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((70, 40), Image.Resampling.BICUBIC)
        large.save(folder / "val" / "images" / f"{index}.png")
        mask = random.integers(0, 4, (40, 70), dtype=np.uint8)
        mask[:3] = 9
        Image.fromarray(mask).save(folder / "val" / "annotations" / f"{index}.png")
    (folder / "classes.txt").write_text("ignore = 9\n" + "\n".join(LABELS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """net/ (float), maps.iqv and logits.iqv, a library of each, data/; not to be changed."""
    folder = tmp_path_factory.mktemp("segmentation")
    make_segmenter(folder / "net")
    write_data(folder / "data")
    calib = ["--calib", str(folder / "data" / "val" / "images")]
    for name, options in (("maps", []), ("logits", ["--logits"])):
        program = str(folder / f"{name}.iqv")
        assert (
            main(["quantize", f"segmenter:{folder / 'net'}", *calib, "-o", program, *options]) == 0
        )
        compiled = str(folder / f"{name}-artifact")
        assert main(["compile", program, "--target", "portable", "-o", compiled]) == 0
    return folder


@pytest.fixture
def call(place, tmp_path, monkeypatch, capsys):
    """call(*arguments) -> (exit code, stdout, stderr), in an empty folder; {} is the place."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument).replace("{}", str(place)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result, *words):
    """One message with all of the words, exit code 2, nothing on stdout."""
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("error: ")
    for word in words:
        assert word in err


def evaluate(call, tmp_path, *arguments):
    code, out, err = call(
        "eval", "segmentation", "--data", "{}/data", *arguments, "--json", "e.json"
    )
    assert code == 0, err
    return json.loads((tmp_path / "e.json").read_text()), out


def pixels(place, index=0):
    path = place / "data" / "val" / "images" / f"{index}.png"
    return Preprocess(WINDOW, crop="squash", interpolation="bilinear")(path)[None]


def whole(place, index=0):
    image = read_image(place / "data" / "val" / "images" / f"{index}.png")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def test_the_manifest_says_the_task(place):
    manifest = json.loads((place / "maps-artifact" / "manifest.json").read_text())
    assert manifest["task"] == "segmentation"
    assert manifest["palette"] == [list(colour) for colour in PALETTE]
    assert manifest["labels"] == list(LABELS)
    (output,) = manifest["outputs"]
    assert (output["dtype"], output["shape"]) == ("uint8", [1, *WINDOW])


def test_evaluation_is_the_same_for_program_and_library(call, place, tmp_path):
    reference = ["--reference", "segmenter:{}/net"]
    program, _ = evaluate(call, tmp_path, "{}/maps.iqv", *reference)
    library, out = evaluate(call, tmp_path, "{}/maps-artifact", *reference, "--threads", "1")
    own = {k for k in program if k.startswith(("mIoU", "iou", "pixel", "mean", "equal", "float"))}
    assert {k: program[k] for k in own} == {k: library[k] for k in own}
    assert (program["kind"], library["kind"]) == ("interpreter", "library")
    assert (library["images"], library["pixels"]) == (COUNT, COUNT * 37 * 70)
    assert library["classes"] == 4
    assert 0 < library["mIoU"] < 100
    assert library["mIoU"] == pytest.approx(np.mean([library[f"iou.{name}"] for name in LABELS]))
    assert library["equal_pixels"] > 80
    # The float model gives each pixel its own class, so that it is equal to itself.
    real, _ = evaluate(call, tmp_path, "segmenter:{}/net", *reference)
    assert real["equal_pixels"] == 100
    assert real["mIoU"] == real["float_mIoU"] == library["float_mIoU"]
    assert "class\tiou\tfloat_iou" in out
    assert "mIoU\t" in out


def test_class_maps_are_written_at_the_size_of_the_masks(call, place, tmp_path):
    evaluate(call, tmp_path, "{}/maps-artifact", "--maps", "found", "--images", "2")
    assert sorted(os.listdir(tmp_path / "found")) == ["0.png", "1.png"]
    found = read_mask(tmp_path / "found" / "0.png")
    assert found.shape == (40, 70)
    own = tvm_backend.load(place / "maps-artifact")(pixels(place))["classes"][0]
    rows = (2 * np.arange(40) + 1) * 32 // 80
    columns = (2 * np.arange(70) + 1) * 48 // 140
    assert np.array_equal(found, own.numpy()[rows][:, columns])


def test_predict_writes_a_class_map_and_an_overlay(call, place, tmp_path):
    image = place / "data" / "val" / "images" / "1.png"
    result = call("predict", "{}/maps-artifact", image, "-o", "a/maps", "--json", "p.json")
    code, out, err = result
    assert code == 0, err
    assert sorted(os.listdir(tmp_path / "a" / "maps")) == ["1.classes.png", "1.overlay.png"]
    found = read_mask(tmp_path / "a" / "maps" / "1.classes.png")
    assert found.shape == (40, 70)
    with Image.open(tmp_path / "a" / "maps" / "1.classes.png") as written:
        assert written.mode == "L"
    metrics = json.loads((tmp_path / "p.json").read_text())
    assert metrics["images"] == 1
    for index, name in enumerate(LABELS):
        share = 100 * (found == index).mean()
        assert metrics.get(f"{image}.{name}", 0) == pytest.approx(share)
    assert out.startswith("image\toverlay\tlargest classes\n")
    with Image.open(tmp_path / "a" / "maps" / "1.overlay.png") as shown:
        assert shown.height == 240
        assert shown.width > 420
    assert call("predict", "{}/maps.iqv", image, "-o", "b")[0] == 0
    assert np.array_equal(read_mask(tmp_path / "b" / "1.classes.png"), found)
    (tmp_path / "broken.png").write_text("no image")
    code, _, err = call("predict", "{}/maps.iqv", image, "broken.png", "-o", "c", "--skip-bad")
    assert code == 0
    assert "note: skipped: broken.png" in err


def test_windows_give_the_same_from_program_and_library(call, place, tmp_path):
    program = iqvit.load(place / "logits.iqv")
    library = tvm_backend.load(place / "logits-artifact")
    (name,) = library.output_names
    for stride in (32, 13):
        sums = [
            sliding_logits(predict, whole(place), WINDOW, stride)
            for predict in (lambda x: iqvit.run(program, x)[name], lambda x: library(x)[name])
        ]
        assert sums[0].dtype == torch.int32
        assert sums[0].shape == (1, 4, 40, 70)
        assert torch.equal(*sums)
    options = ["--window-stride", "13", "--reference", "segmenter:{}/net", "--images", "1"]
    found = [
        evaluate(call, tmp_path, model, *options, "--maps", "found")[0]
        for model in ("{}/logits.iqv", "{}/logits-artifact")
    ]
    assert found[0]["mIoU"] == found[1]["mIoU"]
    assert found[1]["equal_pixels"] > 80
    # the last round's sums, of which the class map is the largest
    chosen = torch.from_numpy(read_mask(tmp_path / "found" / "0.png")).long()
    best = sums[0].gather(1, chosen[None, None])
    assert torch.equal(best[:, 0], sums[0].max(1).values)
    image = place / "data" / "val" / "images" / "0.png"
    assert call("predict", "{}/logits-artifact", image, "-o", "p", "--window-stride", "13")[0] == 0
    assert np.array_equal(read_mask(tmp_path / "p" / "0.classes.png"), chosen.numpy())


def test_logits_without_windows_are_a_class_map_too(call, place, tmp_path):
    for model in ("maps", "logits"):
        image = place / "data" / "val" / "images" / "2.png"
        assert call("predict", f"{{}}/{model}-artifact", image, "-o", model)[0] == 0
    first, second = (read_mask(tmp_path / m / "2.classes.png") for m in ("maps", "logits"))
    assert np.array_equal(first, second)


def test_what_predict_refuses(call, place):
    image = place / "data" / "val" / "images" / "0.png"
    refused(call("predict", "{}/maps-artifact", image), "-o DIR")
    refused(call("predict", "{}/maps-artifact", image, image, "-o", "d"), "have one name")
    refused(call("predict", "{}/maps-artifact", image, "-o", "d", "--top", "3"), "--top")
    refused(call("predict", "{}/maps-artifact", "absent.png", "-o", "d"), "absent.png")
    result = call("predict", "{}/maps-artifact", "absent.png", "-o", "d", "--skip-bad")
    refused(result, "none of 1 images")
    result = call("predict", "{}/maps-artifact", image, "-o", "d", "--window-stride", "8")
    refused(result, "quantize it with --logits")
    result = call("predict", "{}/logits-artifact", image, "-o", "d", "--window-stride", "33")
    refused(result, "a stride of 33 for windows of 32")
    refused(call("predict", "{}/maps-artifact", image, "-o", image), "it is a file where a folder")


def test_what_eval_refuses(call, place, tmp_path):
    run = ("eval", "segmentation", "--data", "{}/data", "{}/maps-artifact")
    refused(call("eval", "imagenet", "--data", "{}/data", "{}/maps-artifact"), "for segmentation")
    refused(call(*run, "--split", "train"), "train")
    refused(call(*run, "--class-names", "a,b"), "has 4 classes", "has 2")
    refused(call(*run, "--ignore", "300"), "ignore value 300")
    refused(call(*run, "--ignore", "8"), "0.png holds the value 9")
    refused(call(*run, "--maps", place / "data" / "val" / "annotations"), "holds the masks")
    refused(call(*run, "--maps", place / "maps.iqv"), "it is a file where a folder")
    refused(call(*run, "--window-stride", "8"), "quantize it with --logits")
    refused(call(*run, "--reference-weights", "w.safetensors"), "--reference SPEC")
    refused(call("eval", "ade20k", "--data", "{}/data", "{}/maps-artifact"), "no folder")
    refused(call("eval", "cityscapes", "--data", "{}/data", "{}/maps-artifact"), "leftImg8bit")
    copied = shutil.copytree(place / "data", tmp_path / "data")
    (copied / "val" / "annotations" / "1.png").unlink()
    run = ("eval", "segmentation", "--data", copied, "{}/maps-artifact")
    refused(call(*run), "1 of 3 images have no mask", "1.png")
    Image.new("L", (70, 41)).save(copied / "val" / "annotations" / "1.png")
    refused(call(*run), "1.png is a mask of 41x70", "40x70")


def test_other_names_of_the_classes_are_told(call):
    arguments = ("--class-names", "Sky,road,wood,car", "--ignore", "9", "--images", "1")
    run = ("eval", "segmentation", "--data", "{}/data", "{}/maps-artifact")
    code, _, err = call(*run, *arguments)
    assert code == 0
    assert "note: 1 classes have another name" in err
    assert "'tree' and 'wood'" in err


def test_the_two_public_data_sets(call, tmp_path):
    image = Image.new("RGB", (48, 32), (200, 30, 90))
    ade = tmp_path / "ADEChallengeData2016"
    city = tmp_path / "city"
    for folder in (ade / "images/validation", ade / "annotations/validation"):
        folder.mkdir(parents=True)
    for folder in (city / "leftImg8bit/val/bonn", city / "gtFine/val/bonn"):
        folder.mkdir(parents=True)
    image.save(ade / "images/validation/a.jpg")
    Image.new("L", (48, 32), 1).save(ade / "annotations/validation/a.png")
    image.save(city / "leftImg8bit/val/bonn/bonn_0_0_leftImg8bit.png")
    Image.new("L", (48, 32), 7).save(city / "gtFine/val/bonn/bonn_0_0_gtFine_labelIds.png")
    for command, folder, classes in (("ade20k", ade, 150), ("cityscapes", city, 19)):
        net = tmp_path / command
        make_segmenter(net, classes, labels=None, palette=None)
        code, _, err = call(
            "eval", command, "--data", folder, f"segmenter:{net}", "--json", "e.json"
        )
        assert code == 0, err
        found = json.loads((tmp_path / "e.json").read_text())
        assert found["pixels"] == 32 * 48
        assert found["pixel_accuracy"] == pytest.approx(
            found.get("iou.wall" if command == "ade20k" else "iou.road")
        )
