"""`iqvit eval coco` and the pictures of boxes, on a detector that finds coloured rectangles."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from iqvit.cli import main
from iqvit.commands.detecting import detecting, match_classes, require_same_labels
from iqvit.commands.predict_boxes import predict_boxes
from iqvit.commands.subject import LIBRARY, float_subject
from iqvit.errors import DataError, ModelError
from iqvit.eval.boxes_overlay import draw_boxes, vivid_colours
from iqvit.models import spec
from iqvit.models.float_model import FloatModel

SIZE = (32, 48)
CHANNELS = ("red", "green")


class Rectangles(nn.Module):
    """The rectangle of bright pixels in the red and the green channel, with fixed scores."""

    def forward(self, x):
        boxes = []
        for channel in range(2):
            rows, columns = (x[0, channel] > 0.5).nonzero(as_tuple=True)
            if len(rows) == 0:
                boxes.append(torch.zeros(4))
                continue
            top, left = rows.min() / SIZE[0], columns.min() / SIZE[1]
            height, width = (rows.max() + 1) / SIZE[0] - top, (columns.max() + 1) / SIZE[1] - left
            boxes.append(torch.stack([left + width / 2, top + height / 2, width, height]))
        found = torch.stack(boxes)
        scores = torch.where(found[:, 2] > 0, torch.tensor([0.9, 0.6]), torch.zeros(2))
        return found[None], scores[None], torch.tensor([[0, 1]])


def float_model(labels=CHANNELS):
    return FloatModel(
        module=Rectangles().eval(),
        name="rectangles",
        input_shape=(1, 3, *SIZE),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize=SIZE,
        crop="squash",
        interpolation="nearest",
        labels=labels,
        weights="none",
        task="detection",
    )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two images of 96x64 with a red and a green rectangle; the model is `toy:any`."""
    monkeypatch.setitem(spec.SOURCES, "toy", lambda name, request: float_model())
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[8:40, 16:64, 0] = 255
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    annotations = []
    for image in (1, 2):
        if image == 2:
            pixels[20:60, 2:10, 1] = 255
            annotations.append((image, 7, [2, 20, 8, 40]))
        annotations.append((image, 3, [16, 8, 48, 32]))
        Image.fromarray(pixels).save(tmp_path / "val" / f"{image}.png")
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.png", "height": 64, "width": 96}
            for image in (1, 2)
        ],
        "categories": [
            {"id": 3, "name": "red", "supercategory": "light"},
            {"id": 7, "name": "green", "supercategory": "light"},
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
            for number, (image, category, bbox) in enumerate(annotations)
        ],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path


def test_eval_coco(data, capsys):
    results, metrics = data / "found.json", data / "metrics.json"
    options = ["--reference", "toy:any", "--results", str(results), "--json", str(metrics)]
    assert main(["eval", "coco", "--data", str(data), "toy:any", *options]) == 0
    found = json.loads(metrics.read_text())
    assert [found[k] for k in ("mAP", "float_mAP", "ap.green")] == pytest.approx([100] * 3)
    assert found["agreement"] == 100
    assert found["images"] == 2
    assert found["boxes"] == 3
    assert found["skipped"] == 0
    assert found["kind"] == "float"
    assert "AP_large" not in found
    rows = json.loads(results.read_text())
    # The absent green rectangle of image 1 is a detection with score 0.
    assert [(row["image_id"], row["category_id"]) for row in rows] == [
        (1, 3),
        (1, 7),
        (2, 3),
        (2, 7),
    ]
    assert rows[3]["bbox"] == pytest.approx([2, 20, 8, 40], abs=1e-4)
    assert "red\t100" in capsys.readouterr().out


def test_one_image_and_files_elsewhere(data, capsys):
    file = data / "annotations" / "instances_val.json"
    where = ["--annotations", str(file), "--image-dir", str(data / "val")]
    assert main(["eval", "coco", "toy:any", *where, "--limit", "1"]) == 0
    assert "images\t1\n" in capsys.readouterr().out
    assert main(["eval", "coco", "toy:any", "--annotations", str(file)]) == 2
    assert main(["eval", "coco", "toy:any", "--data", str(data), *where]) == 2
    assert "say where the data is" in capsys.readouterr().err


def test_groups_are_other_classes(data, capsys):
    assert main(["eval", "coco", "toy:any", "--data", str(data), "--supercategories"]) == 2
    assert "does not know 1: light" in capsys.readouterr().err


def test_bad_annotations(data, capsys):
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 5
    file.write_text(json.dumps(content))
    command = ["eval", "coco", "toy:any", "--data", str(data)]
    assert main(command) == 2
    assert "annotation 0: there is no category with the id 5" in capsys.readouterr().err
    assert main([*command, "--skip-bad"]) == 0
    told = capsys.readouterr()
    assert "note: left out: annotation 0" in told.err
    assert "skipped\t1\n" in told.out


def named(*labels):
    return float_subject(float_model(labels))


def test_classes_are_matched(capsys):
    assert match_classes(named("b", "N/A", "a"), ("a", "b"), "data") == [1, -1, 0]
    assert match_classes(named(), ("a", "b"), "data") == [0, 1]
    assert capsys.readouterr().err == ""
    assert match_classes(named("sofa", "b"), ("couch", "b"), "data") == [0, 1]
    assert "1 classes have another name in the model than in data (sofa / couch)" in (
        capsys.readouterr().err
    )
    with pytest.raises(ModelError, match=r"has 1 classes and data has 2, .* know 1: b"):
        match_classes(named("a"), ("a", "b"), "data")
    with pytest.raises(DataError, match="has other classes"):
        require_same_labels(named("a"), named("b"))


def test_integers_need_their_scales():
    subject = replace(named("a"), kind=LIBRARY)
    with pytest.raises(ModelError, match="also needs boxes, scores, labels"):
        detecting(subject)
    qparams = {
        "boxes": {"scale": 0.5, "zero_point": 3},
        "scores": {"scale": 0.25, "zero_point": 1},
        "labels": None,
    }
    numbers = detecting(replace(subject, qparams=qparams)).numbers
    assert (numbers.box_scale, numbers.box_zero_point) == (0.5, 3)
    assert (numbers.score_scale, numbers.score_zero_point) == (0.25, 1)
    with pytest.raises(ModelError, match="'scores' has no one scale"):
        detecting(replace(subject, qparams={**qparams, "scores": None}))
    with pytest.raises(ModelError, match="is a model for classification"):
        detecting(replace(subject, task="classification"))


def test_predicted_boxes(data, capsys):
    out = data / "out"
    images = [data / "val" / "1.png", data / "val" / "2.png"]
    metrics = predict_boxes(named(*CHANNELS), images, out, None, False)
    assert metrics[f"{images[0]}.detections"] == 1
    assert metrics[f"{images[1]}.detections"] == 2
    listed = json.loads((out / "2.boxes.json").read_text())
    assert (listed["height"], listed["width"]) == (64, 96)
    assert [row["label"] for row in listed["detections"]] == ["red", "green"]
    assert listed["detections"][0]["box"] == pytest.approx([16, 8, 48, 32], abs=1e-4)
    with Image.open(out / "2.boxes.png") as picture:
        assert picture.size == (96 * 4, 64 * 4)
    assert "red 0.90, green 0.60" in capsys.readouterr().out
    assert predict_boxes(named(*CHANNELS), images, out, 0.7, False)[f"{images[1]}.detections"] == 1
    with pytest.raises(DataError, match="say -o DIR"):
        predict_boxes(named(*CHANNELS), images, None, None, False)
    with pytest.raises(DataError, match="have one name"):
        predict_boxes(named(*CHANNELS), [images[0], data / "1.png"], out, None, False)


def test_predict_on_the_command_line(data, capsys):
    command = ["predict", "toy:any", str(data / "val" / "2.png"), "-o", str(data / "out")]
    assert main([*command, "--score", "0.7", "--json", str(data / "m.json")]) == 0
    assert json.loads((data / "m.json").read_text())[f"{command[2]}.detections"] == 1
    assert main([*command, "--top", "3"]) == 2
    assert "--top says nothing about toy:any, a detection model" in capsys.readouterr().err


def test_pictures_of_damaged_images(data, capsys):
    bad = data / "bad.png"
    bad.write_bytes(b"no image")
    images = [bad, data / "val" / "1.png"]
    with pytest.raises(DataError, match="not a readable image"):
        predict_boxes(named(*CHANNELS), images, data / "out", None, False)
    metrics = predict_boxes(named(*CHANNELS), images, data / "out", None, True)
    assert (metrics["images"], metrics["skipped"]) == (1, 1)
    with pytest.raises(DataError, match="none of 1 images"):
        predict_boxes(named(*CHANNELS), [bad], data / "out", None, True)


def test_drawn_boxes():
    palette = ((255, 0, 0), (0, 255, 0))
    image = torch.full((3, 300, 400), 128, dtype=torch.uint8)
    boxes = torch.tensor([[50.0, 60, 150, 160], [300, 200, 500, 299]])
    picture = draw_boxes(
        image, boxes, torch.tensor([1, 0]), torch.tensor([0.9, 0.5]), ("a", "b"), palette
    )
    pixels = np.asarray(picture)
    assert pixels.shape == (300, 400, 3)
    # On the frame, in its label above it, inside it and outside; the second is cut to the image.
    assert pixels[110, 50].tolist() == pixels[58, 52].tolist() == [0, 255, 0]
    assert pixels[110, 100].tolist() == pixels[280, 100].tolist() == [128, 128, 128]
    assert pixels[250, 300].tolist() == pixels[250, 399].tolist() == [255, 0, 0]
    assert np.asarray(draw_boxes(image, boxes[:0], boxes[:0, 0], None, (), ())).std() == 0


def test_names_hide_no_names():
    """Of boxes at one place every name is to be seen: as many fields as boxes, none overlapping."""
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    count = 5
    palette = vivid_colours(count)
    boxes = torch.tensor([[100.0, 100, 200, 250]]).repeat(count, 1)
    names = tuple("abcde")
    pixels = np.asarray(draw_boxes(image, boxes, torch.arange(count), None, names, palette))
    shown = [(pixels == np.array(colour)).all(-1).sum() for colour in palette]
    # The frame of the first lies over the others; a label has about 13 x 16 pixels, less its text.
    assert min(shown) > 100


@pytest.mark.parametrize(
    ("labels", "scores", "palette", "message"),
    [
        (torch.tensor([0]), None, ((1, 2, 3),), "2 boxes for 1 labels"),
        (torch.tensor([0, 0]), torch.tensor([0.5]), ((1, 2, 3),), "another count of scores"),
        (torch.tensor([0, 1]), None, ((1, 2, 3),), "class 1; there are 1"),
        (torch.tensor([0, 0]), None, (), "0 colours for 1 classes"),
    ],
)
def test_boxes_that_cannot_be_drawn(labels, scores, palette, message):
    image = torch.zeros(3, 300, 300, dtype=torch.uint8)
    with pytest.raises(DataError, match=message):
        draw_boxes(image, torch.zeros(2, 4), labels, scores, ("a",), palette)


def test_colours_are_apart():
    colours = np.array(vivid_colours(80), np.int64)
    assert len({tuple(colour) for colour in colours.tolist()}) == 80
    first = colours[:12]
    distances = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(12, dtype=np.int64)
    assert distances.min() > 60
