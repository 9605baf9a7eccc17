"""A multi-task model on the command line: one program, one artifact, both results from one call."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from iqvit.cli import main
from iqvit.cost import cost
from iqvit.errors import ModelError
from iqvit.eval.preprocess import Preprocess
from iqvit.heads import keep_head
from iqvit.interpret import run
from iqvit.models.spec import load_model
from iqvit.serialize import load, save
from iqvit.tvm_backend.runtime import load as load_artifact
from iqvit.verify import check_no_float, prove

NAMES = ["classes", "boxes", "scores", "labels"]
HEADS = {"segmentation": NAMES[:1], "detection": NAMES[1:]}


@pytest.fixture(scope="module")
def place(tmp_path_factory, masks_and_boxes, small_multitask):
    """both.iqv, made.json, the artifacts both/ and segmentation/, and detection.iqv."""
    folder = tmp_path_factory.mktemp("program")
    program = str(folder / "both.iqv")
    calib = ["--calib", str(masks_and_boxes / "train"), "--json", str(folder / "made.json")]
    assert main(["quantize", f"multitask:{small_multitask}", *calib, "-o", program]) == 0
    assert main(["compile", program, "-o", str(folder / "both")]) == 0
    maps = ["--head", "segmentation", "-o", str(folder / "segmentation")]
    assert main(["compile", program, *maps]) == 0
    save(keep_head(load(program), "detection"), folder / "detection.iqv")
    return folder


@pytest.fixture(scope="module")
def images(masks_and_boxes):
    read = Preprocess((64, 96), crop="squash", interpolation="bilinear")
    found = [read(path) for path in sorted((masks_and_boxes / "val" / "images").iterdir())]
    return torch.stack(found)


def test_the_program_says_what_it_is(place):
    graph = load(place / "both.iqv")
    assert list(graph.outputs) == NAMES
    types = [graph[node].type for node in graph.outputs.values()]
    assert [kind.dtype for kind in types] == ["uint8", "int16", "int16", "int32"]
    assert [kind.shape for kind in types] == [(1, 64, 96), (1, 40, 4), (1, 40), (1, 40)]
    manifest = json.loads((place / "both" / "manifest.json").read_text())
    for known in (graph.meta, manifest):
        assert known["task"] == "multitask"
        assert known["labels"] == ["ground", "red", "green"]
        assert known["box_labels"] == ["red", "green"]
        assert known["palette"][1] == [220, 0, 0]
    assert [output["name"] for output in manifest["outputs"]] == NAMES
    made = json.loads((place / "made.json").read_text())
    assert made["sqnr_db"] > 20
    assert made["agreement"] > 90
    assert made["box_agreement"] > 50


def test_it_is_proved_and_close_to_float(place, small_multitask, images):
    graph = load(place / "both.iqv")
    check_no_float(graph)
    prove(graph)
    model = load_model(f"multitask:{small_multitask}")
    found = run(graph, images)
    with torch.no_grad():
        classes, boxes, scores, labels = model.module(model.normalise(images))
    assert float((found["classes"] == classes).float().mean()) > 0.95
    for name, exact in (("boxes", boxes), ("scores", scores)):
        real = graph[graph.outputs[name]].qparams.dequantize(found[name])
        # Neighbours of nearly equal score may have changed places.
        assert float((real - exact).abs().median()) < 0.01
    assert float((found["labels"] == labels).float().mean()) > 0.8


def test_one_artifact_gives_both_as_the_interpreter_does(place, images):
    expected, found = run(load(place / "both.iqv"), images), load_artifact(place / "both")(images)
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_left_keeps_its_integers(place, images, head):
    graph = load(place / "both.iqv")
    alone = keep_head(graph, head)
    expected = run(graph, images)
    assert list(alone.outputs) == HEADS[head]
    for name, found in run(alone, images).items():
        assert torch.equal(found, expected[name])
    assert alone.meta["task"] == head
    labels = {"segmentation": ["ground", "red", "green"], "detection": ["red", "green"]}
    assert alone.meta["labels"] == labels[head]
    assert "box_labels" not in alone.meta


def test_a_library_of_one_head(place, images):
    expected = run(load(place / "both.iqv"), images)
    found = load_artifact(place / "segmentation")(images)
    assert list(found) == ["classes"]
    assert torch.equal(found["classes"], expected["classes"])
    manifest = json.loads((place / "segmentation" / "manifest.json").read_text())
    assert (manifest["task"], manifest["palette"][2]) == ("segmentation", [0, 220, 0])
    assert "box_labels" not in manifest


def test_the_encoder_is_there_once(place):
    graph = load(place / "both.iqv")
    graphs = graph, *(keep_head(graph, head) for head in HEADS)
    both, maps, boxes = ({node.name for node in part} for part in graphs)
    assert both == maps | boxes
    assert any("blocks_0_attn" in name for name in maps & boxes)
    whole, *parts = (cost(part).macs for part in graphs)
    assert max(parts) < whole < sum(parts)


def test_only_multitask_programs_have_heads(place, tmp_path, capsys):
    graph = load(place / "both.iqv")
    with pytest.raises(ModelError, match="no head 'depth': it has segmentation and detection"):
        keep_head(graph, "depth")
    with pytest.raises(ModelError, match="is for detection and has the outputs boxes, scores"):
        keep_head(keep_head(graph, "detection"), "segmentation")
    capsys.readouterr()
    options = ["--head", "depth", "-o", str(tmp_path / "x")]
    assert main(["compile", str(place / "both.iqv"), *options]) == 2
    assert "no head 'depth'" in capsys.readouterr().err


def scores_of(tmp_path, command, model, data, *options):
    metrics = tmp_path / f"{command}.json"
    given = ["--data", str(data), "--json", str(metrics)]
    assert main(["eval", command, *given, *options, str(model)]) == 0
    return json.loads(metrics.read_text())


def test_both_are_scored_from_one_run(place, masks_and_boxes, small_multitask, tmp_path):
    reference = ["--reference", f"multitask:{small_multitask}"]
    both = scores_of(tmp_path, "multitask", place / "both.iqv", masks_and_boxes, *reference)
    maps = scores_of(tmp_path, "segmentation", place / "both", masks_and_boxes, *reference)
    boxes = scores_of(tmp_path, "coco", place / "both", masks_and_boxes, *reference)
    alone = scores_of(tmp_path, "coco", place / "detection.iqv", masks_and_boxes)
    own = {"model", "kind", "seconds", "macs", "params", "bytes", "classes"}
    for other in (maps, boxes, alone):
        same = other.keys() - own
        assert {name: both[name] for name in same} == {name: other[name] for name in same}
    assert (both["images"], both["images_with_masks"], both["images_with_boxes"]) == (3, 3, 3)
    assert {"mIoU", "float_mIoU", "equal_pixels", "mAP", "float_mAP", "iou.red", "ap.red"} < {*both}
    real = scores_of(tmp_path, "multitask", reference[1], masks_and_boxes)
    assert (real["mIoU"], real["mAP"]) == (both["float_mIoU"], both["float_mAP"])


@pytest.mark.parametrize("lacking", ["masks", "boxes"])
def test_what_the_data_lacks_is_not_scored_and_that_is_said(
    place, masks_and_boxes, tmp_path, capsys, lacking
):
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    kept = {"masks": ["annotations", "val/images"], "boxes": ["val/images", "val/annotations"]}
    for part in (*kept[lacking], "classes.txt"):
        (data / part).symlink_to(masks_and_boxes / part)
    found = scores_of(tmp_path, "multitask", place / "both", data)
    assert f"{data / 'val'} has no {lacking}" in capsys.readouterr().err
    assert ("mIoU" in found, "mAP" in found) == (lacking == "boxes", lacking == "masks")
    assert found["images"] == 3
    assert f"images_with_{lacking}" not in found


def test_others_are_refused(place, masks_and_boxes, capsys):
    capsys.readouterr()
    data = ["--data", str(masks_and_boxes)]
    assert main(["eval", "multitask", *data, str(place / "segmentation")]) == 2
    said = capsys.readouterr().err
    assert "is a model for segmentation, where a multi-task one is needed" in said
    assert main(["eval", "segmentation", *data, "--window-stride", "8", str(place / "both")]) == 2
    assert "a model for sliding windows ends in logits" in capsys.readouterr().err


def test_predict_writes_both_of_one_run(place, masks_and_boxes, tmp_path, capsys):
    image = str(masks_and_boxes / "val" / "images" / "1.png")
    files = [f"1.{kind}" for kind in ("boxes.json", "boxes.png", "classes.png", "overlay.png")]
    written = {}
    for model in ("both.iqv", "both", "segmentation", "detection.iqv"):
        folder = tmp_path / model
        options = [] if model == "segmentation" else ["--score", "0.3"]
        assert main(["predict", str(place / model), image, "-o", str(folder), *options]) == 0
        written[model] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert list(written["both"]) == files
    assert written["both.iqv"] == written["both"]
    assert written["segmentation"] | written["detection.iqv"] == written["both"]
    listed = json.loads(written["both"]["1.boxes.json"])
    assert {row["label"] for row in listed["detections"]} <= {"red", "green"}
    assert np.asarray(Image.open(tmp_path / "both" / "1.classes.png")).shape == (80, 120)
    capsys.readouterr()
    assert main(["predict", str(place / "both"), image]) == 2
    assert "gives class maps and boxes: say -o DIR" in capsys.readouterr().err
    assert main(["predict", str(place / "both"), image, "-o", "x", "--top", "3"]) == 2
    assert "--top says nothing about" in capsys.readouterr().err
