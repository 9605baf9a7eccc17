"""Scoring class maps; the oracle is scikit-learn's confusion matrix and Jaccard index."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, jaccard_score

from iqvit.errors import DataError
from iqvit.eval.preprocess import Preprocess
from iqvit.eval.segmentation import ConfusionMatrix, evaluate_segmentation, resize_nearest
from iqvit.eval.segmentation_data import read_folder


def maps(classes, seed, shape=(23, 31)):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8)
    found = torch.where(
        torch.rand(shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8),
    )
    truth[torch.rand(shape, generator=generator) < 0.1] = 255
    return found, truth


def test_against_scikit_learn():
    classes = 7
    own = ConfusionMatrix(classes)
    found, truth = [], []
    for seed in range(4):
        # Class 6 occurs nowhere, class 5 in the truth only, 4 is predicted only.
        predicted, wanted = maps(6, seed)
        predicted[predicted == 5] = 4
        wanted[wanted == 4] = 0
        own.add(predicted, wanted)
        scored = wanted != 255
        found.append(predicted[scored].numpy())
        truth.append(wanted[scored].numpy())
    y_true, y_pred = np.concatenate(truth), np.concatenate(found)
    labels = list(range(classes))
    assert np.array_equal(own.counts.numpy(), confusion_matrix(y_true, y_pred, labels=labels))
    known = 100 * jaccard_score(y_true, y_pred, labels=labels[:6], average=None)
    assert own.iou()[:6] == pytest.approx(known.tolist(), abs=1e-9)
    assert known[4] == known[5] == 0
    assert own.iou()[6] is None
    present = jaccard_score(y_true, y_pred, labels=labels[:6], average="macro")
    assert own.miou() == pytest.approx(100 * present, abs=1e-9)
    assert own.pixel_accuracy() == pytest.approx(100 * (y_true == y_pred).mean(), abs=1e-9)
    # scikit-learn's mean over the true classes warns about class 4, which is predicted only
    kept = y_pred != 4
    balanced = own.accuracies()
    assert [i for i, value in enumerate(balanced) if value is None] == [4, 6]
    assert own.mean_accuracy() == pytest.approx(np.mean([v for v in balanced if v is not None]))
    recall = ConfusionMatrix(classes)
    recall.add(torch.from_numpy(y_pred[kept]), torch.from_numpy(y_true[kept]))
    expected = 100 * balanced_accuracy_score(y_true[kept], y_pred[kept])
    assert recall.mean_accuracy() == pytest.approx(expected, abs=1e-9)
    assert own.metrics()["classes"] == 6
    assert own.metrics()["pixels"] == len(y_true)


def test_sums_over_the_set_are_not_means_over_images():
    own = ConfusionMatrix(2)
    own.add(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 0]))
    own.add(torch.tensor([1, 0]), torch.tensor([0, 1]))
    # class 0: 4 of 6, class 1: 0 of 2
    assert own.iou() == [pytest.approx(400 / 6), 0]
    assert own.miou() == pytest.approx(200 / 6)


def test_predictions_on_ignored_pixels_count_for_nothing():
    own = ConfusionMatrix(3)
    own.add(torch.tensor([0, 2, 200]), torch.tensor([0, 255, 255]))
    assert own.iou() == [100, None, None]
    assert own.miou() == 100


def test_what_cannot_be_scored():
    own = ConfusionMatrix(3)
    with pytest.raises(DataError, match="the class map holds class 3, but there are 3 classes"):
        own.add(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(DataError, match="the mask holds class 7"):
        own.add(torch.tensor([0]), torch.tensor([7]))
    with pytest.raises(DataError, match="of one size"):
        own.add(torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8))
    own.add(torch.tensor([1]), torch.tensor([255]))
    for metric in (own.metrics, own.miou, own.mean_accuracy, own.pixel_accuracy):
        with pytest.raises(DataError, match="no pixels were scored"):
            metric()
    with pytest.raises(DataError, match="256 classes"):
        ConfusionMatrix(256)


@pytest.mark.parametrize("new", [(360, 480), (9, 7), (352, 480), (705, 31)])
def test_nearest_is_that_of_torch(new):
    values = torch.arange(352 * 48, dtype=torch.int32).reshape(352, 48)
    expected = torch.nn.functional.interpolate(
        values[None, None].double(), size=new, mode="nearest-exact"
    )
    assert torch.equal(resize_nearest(values, new).double(), expected[0, 0])


@pytest.fixture
def dataset(tmp_path):
    """Three images of 6x8 whose red channel is the class, with a mask that says so."""
    for index in range(3):
        truth = np.full((6, 8), index, np.uint8)
        truth[:, :2] = 255
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[..., 0] = index
        for folder, array in (("images", pixels), ("annotations", truth)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"{index}.png")
    return read_folder(tmp_path, ".", class_names=["a", "b", "c"])


def red(images):
    return images[:, 0]


def test_evaluation_at_the_masks_resolution(dataset):
    maps_by_name = {}
    scores = evaluate_segmentation(
        red,
        dataset,
        Preprocess(size=(3, 5), crop="squash"),
        reference=lambda x: torch.where(x[:, 0] == 2, 1, x[:, 0]),
        on_map=lambda path, found: maps_by_name.update({path.name: found}),
    )
    assert scores.metrics["mIoU"] == 100
    assert scores.metrics["pixels"] == 3 * 6 * 6
    assert scores.metrics["images"] == 3
    assert scores.iou == {"a": 100, "b": 100, "c": 100}
    assert scores.float_iou == {"a": 100, "b": 50, "c": 0}
    assert scores.metrics["float_mIoU"] == 50
    assert scores.metrics["equal_pixels"] == pytest.approx(200 / 3)
    assert {found.dtype for found in maps_by_name.values()} == {torch.uint8}
    assert torch.equal(maps_by_name["2.png"], torch.full((6, 8), 2, dtype=torch.uint8))


def test_some_images_evenly_spaced(dataset):
    seen = []
    scores = evaluate_segmentation(
        red,
        dataset,
        Preprocess(size=(6, 8)),
        limit=2,
        on_map=lambda path, found: seen.append(path.name),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == ["0.png", (1, 2), "1.png", (2, 2)]
    assert scores.metrics["classes"] == 2
    assert scores.iou["c"] is None
    assert "float_mIoU" not in scores.metrics


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: x[:, 0].float(), "torch.float32 of shape"),
        (lambda x: x, r"\(1, 3, 6, 8\).*[01]\.png"),
    ],
)
def test_a_model_that_gives_no_class_map(dataset, predict, message):
    with pytest.raises(DataError, match=message):
        evaluate_segmentation(predict, dataset, Preprocess(size=(6, 8)))


def test_a_reference_of_another_size(dataset):
    with pytest.raises(DataError, match="not the same model"):
        evaluate_segmentation(
            red, dataset, Preprocess(size=(6, 8)), reference=lambda x: x[:, 0, :3]
        )
