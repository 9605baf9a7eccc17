import math

import pytest
import torch
from PIL import Image

from iqvit.errors import DataError
from iqvit.eval.evaluate import evaluate, spread, without
from iqvit.eval.preprocess import Preprocess

PREPROCESS = Preprocess((4, 4))
CLASSES = 6


@pytest.fixture
def items(tmp_path):
    """Ten images whose red value is their class, 0..5 and again 0..3."""
    found = []
    for i in range(10):
        path = tmp_path / f"{i % CLASSES}_{i}.png"
        Image.new("RGB", (4, 4), (i % CLASSES, 0, 0)).save(path)
        found.append((path, i % CLASSES))
    return found


def one_hot(images):
    return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), CLASSES).to(torch.int8)


def test_a_perfect_predictor(items):
    seen = []
    found = evaluate(one_hot, items, PREPROCESS, batch=4, progress=lambda *a: seen.append(a))
    assert found.pop("seconds") >= 0
    assert found == {"top1": 100.0, "top5": 100.0, "images": 10, "skipped": 0, "excluded": 0}
    assert seen[0] == (4, 10)
    assert seen[-1] == (10, 10)


def test_constant_scores_are_class_0_first(items):
    found = evaluate(lambda x: torch.zeros(len(x), CLASSES), items, PREPROCESS)
    # Two of ten are class 0; one of ten is class 5, the sixth in order.
    assert (found["top1"], found["top5"]) == (20.0, 90.0)


def test_reference_metrics_over_the_whole_set(items):
    def wrong_on_class_1(images):
        scores = one_hot(images)
        scores[images[:, 0, 0, 0] == 1] = torch.tensor([4, 0, 0, 0, 0, 0], dtype=torch.int8)
        return scores

    found = evaluate(
        wrong_on_class_1,
        items,
        PREPROCESS,
        reference=lambda x: 2.0 * one_hot(x),
        scale=2.0,
        batch=3,
    )
    assert found["agreement"] == 80.0
    assert found["top1"] == 80.0
    assert found["float_top1"] == 100.0
    # Signal 10 * 2^2; noise of two images: 2^2 for the hit that is missing, 8^2 for the other.
    assert found["sqnr_db"] == pytest.approx(10 * math.log10(40 / (2 * (4 + 64))))


def test_zero_point_and_scale_dequantise(items):
    found = evaluate(
        lambda x: one_hot(x) * 10 + 3,
        items,
        PREPROCESS,
        reference=lambda x: one_hot(x).float(),
        scale=0.1,
        zero_point=3,
    )
    assert found["sqnr_db"] > 100


def test_bad_images_stop_or_are_counted(items):
    items[3][0].write_bytes(b"x")
    with pytest.raises(DataError, match=r"3_3\.png"):
        evaluate(one_hot, items, PREPROCESS)
    found = evaluate(one_hot, items, PREPROCESS, skip_bad=True)
    assert (found["images"], found["skipped"]) == (9, 1)
    with pytest.raises(DataError, match="none of 1 images"):
        evaluate(one_hot, items[3:4], PREPROCESS, skip_bad=True)


def test_limit_is_spread_and_excluded_images_are_not_scored(items):
    assert [label for _, label in spread(items, 5)] == [0, 2, 4, 0, 2]
    assert spread(items, 99) == items
    out = [path for path, _ in items[:4]]
    assert without(items, out) == items[4:]
    found = evaluate(one_hot, items, PREPROCESS, exclude=out, limit=3)
    assert (found["images"], found["excluded"]) == (3, 4)
    with pytest.raises(DataError, match="no images left"):
        evaluate(one_hot, items, PREPROCESS, exclude=[p for p, _ in items])
    with pytest.raises(DataError, match="cannot be 0"):
        evaluate(one_hot, items, PREPROCESS, limit=0)


def test_classes_that_do_not_match_are_refused(items):
    with pytest.raises(DataError, match=r"data has 3 classes .* and the model 6"):
        evaluate(one_hot, items, PREPROCESS, classes=3)
    with pytest.raises(DataError, match="outside"):
        evaluate(lambda x: torch.zeros(len(x), 2), items, PREPROCESS)
    with pytest.raises(DataError, match="not the same model"):
        evaluate(one_hot, items, PREPROCESS, reference=lambda x: torch.zeros(len(x), 2))
    with pytest.raises(DataError, match="for 8 images"):
        evaluate(lambda x: torch.zeros(1, CLASSES), items, PREPROCESS)
