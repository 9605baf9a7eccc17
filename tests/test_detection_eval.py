"""Average precision; the oracles are hand computation and pycocotools reading the files itself."""

import contextlib
import io
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iqvit.errors import DataError
from iqvit.eval.boxes import BoxFormat, Found, as_json, in_pixels, same_detections
from iqvit.eval.coco_data import read_coco_file
from iqvit.eval.detection import STATS, coco_metrics, coco_results, evaluate_detection
from iqvit.eval.preprocess import Preprocess

SQUASH = Preprocess(size=(8, 8), crop="squash")
IDS = (1, 13, 90)


@pytest.fixture
def write(tmp_path):
    """A data set of grey images of 200x100 (width x height) with the index as value."""

    def make(boxes, images=None):
        count = 1 + max(row[0] for row in boxes) if images is None else images
        data = {
            "images": [
                {"id": 10 + i, "file_name": f"{i}.png", "height": 100, "width": 200}
                for i in range(count)
            ],
            "categories": [{"id": key, "name": f"c{key}"} for key in IDS],
            # The first id is 0, which pycocotools itself takes for no match.
            "annotations": [
                {
                    "id": number,
                    "image_id": 10 + image,
                    "category_id": IDS[label],
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": crowd,
                }
                for number, (image, label, bbox, crowd) in enumerate(boxes)
            ],
        }
        for i in range(count):
            Image.fromarray(np.full((100, 200, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data))
        return read_coco_file(path, tmp_path)

    return make


def from_results(found):
    """A detector that knows the answers: `found` maps the image to rows (label, xywh, score)."""

    def predict(images):
        rows = found.get(int(images[0, 0, 0, 0]), [])
        xywh = torch.tensor([row[1] for row in rows], dtype=torch.float64).reshape(-1, 4)
        sides = torch.tensor([200, 100], dtype=torch.float64)
        centres = (xywh[:, :2] + xywh[:, 2:] / 2) / sides
        boxes = torch.cat([centres, xywh[:, 2:] / sides], dim=1)
        scores = torch.tensor([row[2] for row in rows], dtype=torch.float64)
        labels = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        return boxes[None], scores[None], labels[None]

    return predict


def perfect(boxes):
    found = {}
    for image, label, bbox, crowd in boxes:
        if not crowd:
            found.setdefault(image, []).append((label, bbox, 0.9))
    return from_results(found)


def random_boxes(count, images, seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        width, height = rng.choice([(8, 12), (40, 40), (100, 95)])
        place = [rng.uniform(0, 200 - width), rng.uniform(0, 100 - height)]
        crowd = int(rng.random() < 0.1)
        rows.append((rng.randrange(images), rng.randrange(2), [*place, width, height], crowd))
    return rows


def pycocotools_stats(dataset, results, images=None):
    file = dataset.annotations.with_name("results.json")
    file.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.annotations))
        for annotation in truth.dataset["annotations"]:
            annotation["id"] += 1
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(str(file)), "bbox")
        if images is not None:
            scored.params.imgIds = images
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats


def test_perfect_boxes(write):
    boxes = random_boxes(60, 6, 0)
    found = evaluate_detection(perfect(boxes), write(boxes), SQUASH)
    metrics = found.metrics
    assert [metrics[name] for name in STATS[:6]] == pytest.approx([100] * 6)
    assert [metrics[name] for name in STATS[8:]] == pytest.approx([100] * 4)
    assert metrics["AR1"] < metrics["AR10"] <= 100
    # Class 2 has no box at all.
    assert found.ap == {"c1": pytest.approx(100), "c13": pytest.approx(100), "c90": None}
    assert metrics["images"] == 6
    assert metrics["boxes"] == sum(not row[3] for row in boxes)


def test_by_hand(write):
    # Two of class 0; between the two hits lies a false one: precisions 1, 1/2, 2/3, made falling.
    boxes = [(0, 0, [0, 0, 40, 40], 0), (0, 0, [100, 0, 40, 40], 0), (1, 1, [0, 0, 100, 96], 0)]
    found = {
        0: [(0, [0, 0, 40, 40], 0.9), (0, [50, 50, 40, 40], 0.8), (0, [100, 0, 40, 40], 0.7)],
        # IoU 62/100: a hit at the thresholds .50, .55 and .60 of ten.
        1: [(1, [0, 0, 62, 96], 0.5)],
    }
    scores = evaluate_detection(from_results(found), write(boxes), SQUASH)
    first = (51 * 1 + 50 * 2 / 3) / 101
    assert scores.ap["c1"] == pytest.approx(100 * first)
    assert scores.ap["c13"] == pytest.approx(30)
    assert scores.metrics["mAP"] == pytest.approx((100 * first + 30) / 2)
    assert scores.metrics["AP50"] == pytest.approx((100 * first + 100) / 2)
    assert scores.metrics["AP75"] == pytest.approx(100 * first / 2)
    assert scores.metrics["AP_small"] is None
    assert scores.metrics["AP_medium"] == pytest.approx(100 * first)
    assert scores.metrics["AP_large"] == pytest.approx(30)
    assert scores.metrics["AR1"] == pytest.approx((50 + 30) / 2)
    assert scores.metrics["AR100"] == pytest.approx((100 + 30) / 2)


def test_crowd_regions_are_neither_found_nor_missed(write):
    boxes = [(0, 0, [0, 0, 40, 40], 0), (0, 0, [100, 0, 100, 100], 1)]
    found = {0: [(0, [110, 10, 20, 20], 0.9), (0, [150, 50, 30, 30], 0.8), (0, boxes[0][2], 0.7)]}
    assert evaluate_detection(from_results(found), write(boxes), SQUASH).ap["c1"] == pytest.approx(
        100
    )
    boxes[1] = (1, 1, [0, 0, 9, 9], 0)
    assert evaluate_detection(from_results(found), write(boxes), SQUASH).ap["c1"] == pytest.approx(
        100 / 3
    )


def noisy(boxes, seed):
    rng = random.Random(seed)
    found = {}
    for image, label, bbox, _ in boxes:
        for _ in range(rng.choice([0, 1, 1, 2])):
            moved = [max(value + rng.gauss(0, 0.08) * bbox[2], 1) for value in bbox]
            other = label if rng.random() < 0.8 else 2
            # Few levels of scores, as integers have, so that equal ones occur.
            found.setdefault(image, []).append((other, moved, rng.randrange(1, 20) / 20))
    return {image: sorted(rows, key=lambda row: -row[2]) for image, rows in found.items()}


def test_the_summary_is_that_of_pycocotools(write):
    boxes = random_boxes(80, 9, 1)
    dataset = write(boxes, images=10)
    scores = evaluate_detection(from_results(noisy(boxes, 2)), dataset, SQUASH)
    expected = pycocotools_stats(dataset, scores.results)
    assert 5 < 100 * expected[0] < 95
    assert [scores.metrics[name] for name in STATS] == (100 * expected).tolist()
    assert {row["category_id"] for row in scores.results} == set(IDS)
    assert set(scores.results[0]) == {"image_id", "category_id", "bbox", "score"}


def test_images_that_are_not_scored_do_not_count(write):
    boxes = random_boxes(80, 9, 3)
    dataset = write(boxes, images=9)
    seen = []
    scores = evaluate_detection(
        from_results(noisy(boxes, 4)),
        dataset,
        SQUASH,
        limit=3,
        on_found=lambda item, found: seen.append(item.image_id),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [10, (1, 3), 13, (2, 3), 16, (3, 3)]
    expected = pycocotools_stats(dataset, scores.results, [10, 13, 16])
    assert [scores.metrics[name] for name in STATS] == (100 * expected).tolist()
    everything = pycocotools_stats(dataset, scores.results)
    assert everything[0] < expected[0]


def test_integers_are_the_same_boxes(write):
    boxes = [(0, 0, [50, 25, 100, 50], 0), (0, 1, [0, 0, 25, 100], 0)]
    dataset = write(boxes)

    def predict(images):
        assert images.dtype == torch.uint8
        assert images.shape == (1, 3, 8, 8)
        fractions = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0625, 0.5, 0.125, 1]])
        integers = (fractions * 4096 - 32768).to(torch.int16)
        return integers[None], torch.tensor([[90, 40]]), torch.tensor([[0, 1]], dtype=torch.uint8)

    numbers = BoxFormat(1 / 4096, -32768, 1 / 64, 10)
    scores = evaluate_detection(predict, dataset, SQUASH, numbers=numbers)
    assert [row["bbox"] for row in scores.results] == [[50, 25, 100, 50], [0, 0, 25, 100]]
    assert [row["score"] for row in scores.results] == [80 / 64, 30 / 64]
    assert scores.metrics["mAP"] == pytest.approx(100)


def test_labels_that_the_data_does_not_have(write):
    boxes = [(0, 2, [50, 25, 100, 50], 0)]
    found = {0: [(4, [50, 25, 100, 50], 0.9), (0, [0, 0, 9, 9], 0.8), (2, [0, 0, 9, 9], 0.7)]}
    scores = evaluate_detection(
        from_results(found), write(boxes), SQUASH, class_of=[-1, 0, 1, -1, 2]
    )
    assert [row["category_id"] for row in scores.results] == [90, 13]
    assert scores.metrics["mAP"] == pytest.approx(100)


def test_no_detection_at_all(write):
    boxes = random_boxes(9, 2, 5)
    metrics = evaluate_detection(
        from_results({}), write(boxes), SQUASH, reference=from_results({})
    ).metrics
    assert metrics["mAP"] == metrics["AR100"] == 0
    assert metrics["agreement"] is None


def test_agreement(write):
    boxes = [(0, 0, [0, 0, 100, 50], 0), (1, 0, [0, 0, 100, 50], 0)]
    own = {
        0: [(0, [0, 0, 100, 50], 0.9), (0, [0, 0, 100, 50], 0.8), (1, [9, 9, 40, 40], 0.7)],
        1: [(0, [0, 0, 91, 50], 0.9), (0, [5, 5, 20, 20], 0.4)],
    }
    other = {
        0: [(0, [0, 0, 100, 50], 0.9), (2, [9, 9, 40, 40], 0.7)],
        1: [(0, [0, 0, 100, 50], 0.9), (1, [50, 50, 40, 40], 0.5)],
    }
    scores = evaluate_detection(
        from_results(own), write(boxes), SQUASH, reference=from_results(other)
    )
    # Pairs: one in each image, of 4 detections of ours and 4 of the reference.
    assert scores.metrics["agreement"] == pytest.approx(100 * 2 * 2 / 8)
    assert scores.metrics["float_mAP"] == pytest.approx(100)
    assert set(scores.metrics) >= {f"float_{name}" for name in STATS[:6]}
    assert scores.float_ap == {"c1": pytest.approx(100), "c13": None, "c90": None}
    assert scores.ap["c1"] < 100
    alone = evaluate_detection(from_results(own), write(boxes), SQUASH)
    assert "agreement" not in alone.metrics
    assert alone.float_ap is None


def found_of(*rows):
    return Found(
        torch.tensor([row[1] for row in rows], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([row[2] for row in rows], dtype=torch.float64),
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
    )


def test_same_detections_at_the_borders():
    one = found_of((0, [0, 0, 100, 50], 0.5))
    assert same_detections(one, found_of((0, [0, 0, 90, 50], 0.5)), 0.5) == (1, 2)
    assert same_detections(one, found_of((0, [0, 0, 89.9, 50], 0.5)), 0.5) == (0, 2)
    assert same_detections(one, found_of((0, [0, 0, 90, 50], 0.49)), 0.5) == (0, 1)
    assert same_detections(found_of(), found_of(), 0.5) == (0, 0)


def test_plain_values():
    found = found_of((1, [1, 2, 3, 4], 0.25), (0, [5, 6, 7, 8], 0.75))
    assert as_json(found.at_least(0.5), ("a", "b")) == [
        {"class": 0, "label": "a", "score": 0.75, "box": [5, 6, 7, 8]}
    ]
    assert [row["label"] for row in as_json(found.at_least(0), ("a", "b"))] == ["a", "b"]


def answer(boxes=None, scores=None, labels=None):
    return (
        torch.zeros(1, 2, 4) if boxes is None else boxes,
        torch.zeros(1, 2) if scores is None else scores,
        torch.zeros(1, 2, dtype=torch.int64) if labels is None else labels,
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (answer(boxes=torch.zeros(1, 3, 4)), "where boxes"),
        (answer(boxes=torch.zeros(2, 4)), "where boxes"),
        (answer(scores=torch.zeros(1, 3)), "where boxes"),
        (answer(labels=torch.zeros(1, 2)), "torch.float32 labels"),
        (answer(labels=torch.zeros(2, dtype=torch.int64)), "where boxes"),
        (answer(boxes=torch.full((1, 2, 4), torch.inf)), "box that is NaN or infinite"),
        (answer(scores=torch.full((1, 2), torch.nan)), "score that is NaN or infinite"),
        (answer(labels=torch.tensor([[0, 3]])), "label 3 for photo; it has 3 classes"),
        (answer(labels=torch.tensor([[-1, 0]])), "label -1"),
    ],
)
def test_answers_that_are_no_detections(output, message):
    with pytest.raises(DataError, match=message):
        in_pixels(output, (10, 20), BoxFormat(), "photo", range(3))


@pytest.mark.parametrize(
    "read", [Preprocess(size=(8, 8)), Preprocess(size=(8, 8), resize=(9, 9), crop="squash")]
)
def test_a_detector_sees_the_whole_image(write, read):
    with pytest.raises(DataError, match="must squash"):
        evaluate_detection(from_results({}), write([(0, 0, [0, 0, 9, 9], 0)]), read)


def test_nothing_to_score(write):
    dataset = write([(0, 0, [0, 0, 9, 9], 1), (2, 1, [0, 0, 9, 9], 0)])
    with pytest.raises(DataError, match="nothing to score: none of 1 images"):
        evaluate_detection(from_results({}), dataset, SQUASH, limit=1)


def test_damaged_images(write):
    boxes = [(image, 0, [0, 0, 50, 50], 0) for image in range(3)]
    dataset = write(boxes)
    dataset.items[1].path.write_bytes(b"no image")
    Image.fromarray(np.zeros((50, 200, 3), np.uint8)).save(dataset.items[2].path)
    with pytest.raises(DataError, match=r"1\.png is not a readable image"):
        evaluate_detection(perfect(boxes), dataset, SQUASH)
    metrics = evaluate_detection(perfect(boxes), dataset, SQUASH, skip_bad=True).metrics
    assert metrics["skipped"] == 2
    assert metrics["images"] == metrics["boxes"] == 1
    assert metrics["mAP"] == pytest.approx(100)


def test_pycocotools_prints_nothing(write, capsys):
    dataset = write([(0, 0, [0, 0, 9, 9], 0)])
    found = found_of((0, [0, 0, 9, 9], 0.5))
    coco_metrics(
        dataset, dataset.items, coco_results(dataset.items[0], found, dataset.category_ids)
    )
    assert capsys.readouterr().out == ""
