import pytest
import torch

from iqvit.errors import DataError, ModelError
from iqvit.eval.imagenet import read_imagenet
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.models import demo, drawings
from iqvit.models.spec import load_model


def test_images_are_the_same_every_time_and_in_every_number():
    images, labels = demo.make_images("test", 12)
    assert images.shape == (12, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    fewer, _ = demo.make_images("test", 5)
    assert torch.equal(images[:5], fewer)
    for split, seed in (("train", 0), ("calib", 0), ("test", 1)):
        other, _ = demo.make_images(split, 12, seed)
        assert not any(torch.equal(a, b) for a in images for b in other)
    assert len({image.numpy().tobytes() for image in images}) == 12


def test_unknown_split_is_refused():
    with pytest.raises(DataError, match="split 'validation'"):
        demo.make_images("validation", 3)


def test_written_images_read_back(tmp_path):
    folder = tmp_path / "made" / "calib"
    paths = demo.write_images(folder, "calib", 10, seed=2)
    found = read_imagenet(folder)
    assert [p for p, _ in found.items] == paths
    images, labels = demo.make_images("calib", 10, seed=2)
    order = torch.argsort(labels, stable=True)
    assert [label for _, label in found.items] == labels[order].tolist()
    model = demo.float_model(demo.ViT(demo.CONFIG))
    assert torch.equal(load_images(paths, Preprocess.from_dict(model.preprocessing)), images[order])
    with pytest.raises(DataError, match="exists already"):
        demo.write_images(folder, "calib", 10)
    assert [p.name for p in folder.parent.iterdir()] == ["calib"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(drawings.Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        demo.write_images(tmp_path / "out", "calib", 2)
    assert list(tmp_path.iterdir()) == []


def test_training_learns_is_repeatable_and_leaves_the_random_state():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    seen = []
    first = demo.train(images=64, epochs=4, batch=16, progress=lambda *a: seen.append(a))
    assert torch.equal(torch.rand(1), expected)
    assert [(done, steps) for done, steps, _ in seen] == [(i + 1, 16) for i in range(16)]
    assert seen[-1][2] < seen[0][2]
    assert not first.training
    again = demo.train(images=64, epochs=4, batch=16).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.state_dict().items())
    with pytest.raises(ModelError, match="no training"):
        demo.train(images=8, batch=16)


def test_the_model_has_a_name_to_load_it_by():
    found = load_model(f"{demo.__file__}:model")
    assert found.labels == demo.CLASSES
    images, _ = demo.make_images("test", 2)
    assert found.scores(images).shape == (2, 8)


@pytest.mark.slow
def test_full_training_is_good_but_not_perfect():
    model = demo.float_model(demo.train())
    images, labels = demo.make_images("test", 800)
    correct = (model.scores(images).argmax(1) == labels).float().mean()
    assert 0.75 <= correct <= 0.97
