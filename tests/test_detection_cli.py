"""A detector on the command line: quantize, compile, eval coco and predict, of boxes that are equal
wherever the program runs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from iqvit.cli import main
from iqvit.models.rtdetr.config import PyramidConfig, ResNetConfig, RTDetrConfig
from iqvit.models.rtdetr.folder import DetectorCard, save_detector
from iqvit.models.rtdetr.model import RTDetr
from iqvit.serialize import load

SIZE = (64, 96)
LABELS = ("ball", "box", "tree")
IDS = (7, 3, 40)
COUNT = 4
BACKBONES = {
    "default": PyramidConfig(width=32, depth=1, heads=2, mlp_ratio=2),
    "discrete": ResNetConfig(stem=16, channels=(16, 16, 24, 24), depths=(1, 1, 1, 1)),
}
"""One of each, by the sampling that it is tried with."""


def make_detector(folder, sampling):
    config = RTDetrConfig(
        image_size=SIZE,
        classes=len(LABELS),
        backbone=BACKBONES[sampling],
        width=32,
        heads=2,
        encoder_ffn=48,
        rep_blocks=1,
        queries=20,
        decoder_layers=1,
        decoder_ffn=48,
        points=2,
        sampling=sampling,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = RTDetr(config).eval()
        for name, value in detector.named_parameters():
            # Scores that differ, as those of a trained one do, and boxes near the anchors.
            if value.ndim == 2 and "score_head" in name:
                nn.init.normal_(value, std=2 * value.shape[1] ** -0.5)
            elif value.ndim == 2 and "bbox_head" in name:
                nn.init.normal_(value, std=0.2 * value.shape[1] ** -0.5)
            elif "dec_score_head" in name:
                nn.init.zeros_(value)
            elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                nn.init.normal_(value, std=0.1)
    save_detector(folder, detector, DetectorCard(LABELS, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))


def write_data(folder):
    """Images of several sizes in COCO's format, with ids out of order; the last has no boxes."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    random = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(COUNT):
        width, height = 90 + 10 * index, 70
        pixels = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        large.save(folder / "val" / f"{index}.png")
        images.append(
            {"id": 50 - index, "file_name": f"{index}.png", "height": height, "width": width}
        )
        if index == COUNT - 1:
            continue
        for place, category in enumerate(IDS):
            box = [5 + 20 * place, 10, 30, 40]
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": 50 - index,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    named = sorted(zip(IDS, LABELS, strict=True))
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for number, name in named],
    }
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))


@pytest.fixture(
    scope="module", params=["default", pytest.param("discrete", marks=pytest.mark.slow)]
)
def place(request, tmp_path_factory):
    """net/ (float), boxes.iqv, artifact/, data/, made.json; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    make_detector(folder / "net", request.param)
    write_data(folder / "data")
    calib = ["--calib", str(folder / "data" / "val"), "--json", str(folder / "made.json")]
    program = str(folder / "boxes.iqv")
    assert main(["quantize", f"rtdetr:{folder / 'net'}", *calib, "-o", program]) == 0
    assert main(["compile", program, "-o", str(folder / "artifact")]) == 0
    return folder


def test_the_program_says_what_it_is(place):
    graph = load(place / "boxes.iqv")
    assert list(graph.outputs) == ["boxes", "scores", "labels"]
    boxes, scores, labels = (graph[node] for node in graph.outputs.values())
    assert (boxes.type.dtype, boxes.type.shape) == ("int16", (1, 60, 4))
    assert (scores.type.dtype, labels.type.dtype) == ("int16", "int32")
    assert (labels.type.lo, labels.type.hi) == (0, len(LABELS) - 1)
    assert boxes.qparams.zero_point == scores.qparams.zero_point == 0
    manifest = json.loads((place / "artifact" / "manifest.json").read_text())
    for known in (graph.meta, manifest):
        assert known["task"] == "detection"
        assert known["labels"] == list(LABELS)
        assert known["preprocessing"]["size"] == list(SIZE)
    assert [output["name"] for output in manifest["outputs"]] == ["boxes", "scores", "labels"]
    made = json.loads((place / "made.json").read_text())
    assert made["sqnr_db"] > 20
    assert made["agreement"] > 50


def evaluate(place, model, tmp_path, *options):
    results, metrics = tmp_path / "results.json", tmp_path / "metrics.json"
    given = ["--data", str(place / "data"), "--results", str(results), "--json", str(metrics)]
    assert main(["eval", "coco", *given, *options, model]) == 0
    return json.loads(results.read_text()), json.loads(metrics.read_text())


def test_interpreter_and_library_find_the_same(place, tmp_path):
    float_spec = f"rtdetr:{place / 'net'}"
    program = str(place / "boxes.iqv")
    expected, metrics = evaluate(place, program, tmp_path, "--reference", float_spec)
    found, scored = evaluate(place, str(place / "artifact"), tmp_path)
    assert found == expected
    assert (metrics["kind"], scored["kind"]) == ("interpreter", "library")
    assert scored["mAP"] == metrics["mAP"]
    assert metrics["images"] == COUNT
    assert metrics["agreement"] > 50
    assert {row["category_id"] for row in found} == set(IDS)
    assert {row["image_id"] for row in found} == {50 - index for index in range(COUNT)}
    for image in range(COUNT):
        scores = [row["score"] for row in found if row["image_id"] == 50 - image]
        assert len(scores) == 60
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 30


def test_predict_draws_and_lists_the_same(place, tmp_path):
    image = str(place / "data" / "val" / "1.png")
    written = {}
    for model in ("boxes.iqv", "artifact"):
        folder = tmp_path / model
        arguments = ["predict", str(place / model), image, "-o", str(folder), "--score", "0.5"]
        assert main(arguments) == 0
        written[model] = [(folder / f"1.boxes.{kind}").read_bytes() for kind in ("json", "png")]
    assert written["boxes.iqv"] == written["artifact"]
    content = json.loads(written["artifact"][0])
    assert (content["height"], content["width"]) == (70, 100)
    assert 0 < len(content["detections"]) < 60
    assert all(row["label"] == LABELS[row["class"]] for row in content["detections"])
    arguments = ["predict", str(place / "boxes.iqv"), image, "-o", str(tmp_path), "--score", "1"]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "1.boxes.json").read_text())["detections"] == []
    pictures = [tmp_path / "artifact" / "1.boxes.png", tmp_path / "1.boxes.png"]
    drawn, plain = (np.asarray(Image.open(path).convert("RGB")) for path in pictures)
    # A small image is drawn on several times its size.
    assert drawn.shape == plain.shape == (280, 400, 3)
    assert (drawn != plain).any()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("{}/net", ["--classes", "5"], "has 3 classes, not 5"),
        ("{}/net", ["--input-size", "64x100"], "the width of the image, 100, is not a multiple of"),
        ("vit_tiny", [], "give its number of classes"),
        ("vit_large", [], "neither a folder nor one of vit_tiny, resnet_tiny, v2_s"),
        (
            "resnet_tiny",
            ["--classes", "5", "--weights", "{}/net/model.safetensors"],
            "was trained for 3 classes, the model is for 5",
        ),
        (
            "vit_tiny",
            ["--classes", "3", "--input-size", "32"],
            "100 queries are asked for, but an image of 32x32 has only 21 tokens",
        ),
    ],
    ids=["classes", "stride", "unsaid", "name", "weights", "queries"],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, model, options, message):
    make_detector(tmp_path / "net", "default")
    write_data(tmp_path / "data")
    words = [word.replace("{}", str(tmp_path)) for word in (f"rtdetr:{model}", *options)]
    data = ["--calib", str(tmp_path / "data" / "val"), "-o", str(tmp_path / "x.iqv")]
    capsys.readouterr()
    assert main(["quantize", *words, *data]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert message in " ".join(error.split())
    assert not (tmp_path / "x.iqv").exists()
