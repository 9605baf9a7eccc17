"""The model that comes with iqvit: its files, its integers, and the demo that shows them."""

import json
import os
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

import iqvit
from iqvit.cli import main
from iqvit.errors import ModelError
from iqvit.interpret import run
from iqvit.models import embedded
from iqvit.models.scenes import CLASSES, THINGS, split_scene
from iqvit.models.spec import load_model
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load as load_artifact
from iqvit.verify import check_no_float, prove

ROOT = Path(__file__).parents[1]
MEGABYTES = 12


def images(split, count, size):
    """uint8 [count, 3, H, W]: the first scenes of a split."""
    shown = [torch.from_numpy(split_scene(0, split, i, size).image) for i in range(count)]
    return torch.stack(shown).permute(0, 3, 1, 2).contiguous()


def test_weights_and_card_come_with_the_package():
    for name in embedded.MODELS:
        files = sorted(path.name for path in embedded.folder(name).iterdir())
        assert files == ["MODEL_CARD.md", "config.json", "model.safetensors"]
        assert (embedded.folder(name) / "model.safetensors").stat().st_size <= MEGABYTES * 10**6
        for said in ("benchmarks/embedded.sh", "Apache-2.0", "mIoU", "mAP"):
            assert said in embedded.card(name)


def test_an_installed_package_has_the_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["iqvit.models.embedded"]
    place = ROOT / "models" / "embedded"
    for path in (p for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        name = path.relative_to(place).as_posix()
        assert path.suffix == ".py" or any(fnmatch(name, pattern) for pattern in patterns)


def test_it_is_a_model_like_others():
    model = load_model("embedded:scenes")
    assert (model.task, model.labels, model.box_labels) == ("multitask", CLASSES, THINGS)
    assert (model.weights, model.notes) == ("embedded:scenes", ())
    maps, boxes = (load_model(f"embedded:scenes+{head}") for head in ("segmentation", "detection"))
    assert (maps.task, boxes.task, boxes.labels) == ("segmentation", "detection", THINGS)
    x = model.normalise(images("val", 1, model.input_shape[2:]))
    with torch.no_grad():
        classes, *found = model.module(x)
        assert torch.equal(maps.module(x), classes)
        assert all(torch.equal(a, b) for a, b in zip(boxes.module(x), found, strict=True))


@pytest.mark.parametrize("name", ["streets", "scenes+depth", ""])
def test_what_does_not_come_is_refused(name):
    with pytest.raises(ModelError):
        load_model(f"embedded:{name}")
    with pytest.raises(ModelError, match=r"what does is embedded:scenes"):
        embedded.folder("streets")


def test_it_is_proved_and_the_library_gives_its_integers(tmp_path):
    model = load_model("embedded:scenes")
    size = model.input_shape[2:]
    graph = iqvit.quantize(model.module, images("calib", 1, size), mean=model.mean, std=model.std)
    check_no_float(graph)
    assert prove(graph)
    compile_library(graph, tmp_path / "artifact", target="portable")
    library = load_artifact(tmp_path / "artifact")
    for image in images("test", 2, size).split(1):
        expected, found = run(graph, image), library(image)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_demo_refuses_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(["demo", "-o", "there"]) == 2
    assert "there exists already; remove it, or name another with -o" in capsys.readouterr().err
    assert main(["demo", "-o", "new", "--images", "0"]) == 2
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.slow
def test_the_demo_and_how_near_its_integers_are_to_float(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "-o", "d", "--images", "100", "--json", "d.json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(Path("d.json").read_text())
    for metric in ("mIoU", "mAP"):
        assert abs(found[metric] - found[f"float_{metric}"]) <= 1.0
    assert "the same integers for all 100 scenes" in out
    assert out.startswith("program\tmIoU\tmAP")
    files = ["artifact", "model.iqv", "pictures", "results.json", "results.md", "scenes"]
    assert sorted(os.listdir("d")) == files
    assert json.loads(Path("d/results.json").read_text()) == found
    assert "| integers, TVM |" in Path("d/results.md").read_text()
    assert len(os.listdir("d/pictures")) == 8
    image = sorted(map(str, Path("d/scenes/test/images").iterdir()))[0]
    assert main(["predict", "d/artifact", image, "-o", "p"]) == 0
