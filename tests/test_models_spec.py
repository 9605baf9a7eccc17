import builtins
import json
import socket

import pytest
import torch
from safetensors.torch import save_file

from iqvit.errors import ModelError
from iqvit.models.labels import imagenet_labels
from iqvit.models.spec import load_model

TINY = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
    "id2label": {"0": "ant", "1": "bee", "2": "cat"},
}
USER = """
from dataclasses import dataclass
import torch

import neighbour

@dataclass
class Sizes:
    classes: int

class Net(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.head = torch.nn.Linear(3, sizes.classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))

def plain():
    return Net(Sizes(neighbour.CLASSES))

def carded(num_classes=4):
    return Net(Sizes(num_classes)), {"input_size": 32, "mean": (0, 0, 0), "std": [1, 1, 1],
                                     "crop_pct": 0.8, "labels": ["a", "b", "c", "d"]}

def mapped():
    return Net(Sizes(2)), {"input_size": 32, "task": "segmentation"}

def tasked():
    return Net(Sizes(2)), {"task": "tracking"}

def misspelt():
    return Net(Sizes(2)), {"inputsize": 32}

def needy(path):
    return path

def nothing():
    return None
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def user(tmp_path):
    (tmp_path / "mine.py").write_text(USER)
    (tmp_path / "neighbour.py").write_text("CLASSES = 5")
    return str(tmp_path / "mine.py")


def images(model, count=2):
    return torch.randint(0, 256, (count, *model.input_shape[1:]), dtype=torch.uint8)


def test_timm():
    pytest.importorskip("timm")
    model = load_model("timm:vit_tiny_patch16_224", seed=3)
    assert model.input_shape == (1, 3, 224, 224)
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    assert model.preprocessing == {
        "size": [224, 224],
        "resize": [248, 248],
        "crop": "center",
        "interpolation": "bicubic",
    }
    assert model.labels is not None
    assert model.labels[0] == "tench"
    assert model.weights == "random, seed 3"
    assert not model.module.training


def test_seed_decides_and_the_callers_random_state_stays():
    pytest.importorskip("timm")
    name = "timm:test_vit"
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [load_model(name, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    heads = [m.module.get_parameter("blocks.0.attn.qkv.weight") for m in models]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_timm_weights_of_another_size_are_resampled(tmp_path):
    pytest.importorskip("timm")
    native = load_model("timm:test_vit")
    side = native.input_shape[2]
    path = tmp_path / "w.safetensors"
    save_file(native.module.state_dict(), path)
    wider = load_model("timm:test_vit", weights=path, input_size=side + 32)
    assert wider.notes == (f"position embedding resampled for {side + 32}x{side + 32} pixels",)
    assert wider.weights == str(path)
    assert wider.scores(images(wider)).shape == (2, 1000)
    # And weights that were made at the size asked for are taken as they are.
    save_file(wider.module.state_dict(), path)
    again = load_model("timm:test_vit", weights=path, input_size=side + 32)
    assert again.notes == ()
    x = images(wider)
    assert torch.equal(again.scores(x), wider.scores(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit", "names no model"),
        ("timm:", "no name after the colon"),
        ("onnx:vit", "names no model"),
        ("timm:vit_tinny_patch16_224", "close names: vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.x", "no tag 'x'; known: .*augreg"),
        ("timm:hf-hub:timm/vit", "is a place, not a name"),
        ("torchvision:vit_b16", "close names: vit_b_16"),
        ("torchvision:fcn_resnet50", "not an image classifier"),
        ("transformers:bert-base-uncased", "neither a folder"),
        ("gone.py:make", r"no file gone\.py"),
    ],
)
def test_names_that_mean_nothing(spec, message):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_impossible_sizes():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="input size of timm:test_vit cannot be 0"):
        load_model("timm:test_vit", input_size=0)
    with pytest.raises(ModelError, match="not a multiple of its patch"):
        load_model("timm:test_vit", input_size=100)
    with pytest.raises(ModelError, match="cannot be made"):
        load_model("torchvision:vit_b_32", input_size=33)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_missing_library_says_what_to_install(monkeypatch, library):
    real = builtins.__import__

    def absent(name, *args, **options):
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModelError, match=r"pip install iqvit\[models\]"):
        load_model(f"{library}:vit-tiny-patch16-224")


def test_torchvision():
    model = load_model("torchvision:vit_b_32", input_size=64, num_classes=5)
    assert model.input_shape == (1, 3, 64, 64)
    assert model.resize == (73, 73)
    assert model.mean == (0.485, 0.456, 0.406)
    assert model.interpolation == "bilinear"
    assert model.labels is None
    assert model.scores(images(model)).shape == (2, 5)


def test_transformers_known_size():
    pytest.importorskip("transformers")
    model = load_model("transformers:vit-tiny-patch16-224", input_size=32, num_classes=6)
    assert model.preprocessing["crop"] == "squash"
    assert model.scores(images(model)).shape == (2, 6)
    deit = load_model("transformers:deit-tiny-distilled-patch16-224", input_size=32)
    assert deit.resize == (36, 36)
    assert type(deit.module).__name__ == "DeiTForImageClassificationWithTeacher"
    assert deit.labels == imagenet_labels()


def test_transformers_folder(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    model = load_model(f"transformers:{tmp_path}")
    assert model.labels == ("ant", "bee", "cat")
    assert any("weights are random" in note for note in model.notes)

    save_file(
        {k: v + 1 for k, v in model.module.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 40}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]})
    )
    model = load_model(f"transformers:{tmp_path}")
    assert model.weights == str(tmp_path / "model.safetensors")
    assert (model.resize, model.crop, model.interpolation) == ((40, 40), "center", "bicubic")
    assert model.mean == (0.1, 0.2, 0.3)
    assert model.notes == ()
    assert model.module.get_parameter("classifier.bias").tolist() == [1, 1, 1]

    (tmp_path / "config.json").write_text(json.dumps(TINY | {"hidden_size": 64}))
    with pytest.raises(ModelError, match="wrong shape"):
        load_model(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"model_type": "mine"}))
    with pytest.raises(ModelError, match="model_type 'mine'"):
        load_model(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        load_model(f"transformers:{tmp_path}")


def test_the_users_own_function(user):
    plain = load_model(f"{user}:plain", input_size=16)
    assert plain.input_shape == (1, 3, 16, 16)
    assert plain.scores(images(plain)).shape == (2, 5)
    carded = load_model(f"{user}:carded")
    assert carded.preprocessing["resize"] == [40, 40]
    assert carded.labels == ("a", "b", "c", "d")
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(carded.normalise(x), torch.ones(1, 3, 32, 32))
    assert load_model(f"{user}:carded", num_classes=4).name == f"{user}:carded"
    assert (carded.task, load_model(f"{user}:mapped").task) == ("classification", "segmentation")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("gone", {}, "no function 'gone'"),
        ("plain", {"num_classes": 3}, "takes no argument `num_classes`"),
        ("carded", {"num_classes": 3}, "4 labels for 3 classes"),
        ("misspelt", {}, "preprocessing has no inputsize"),
        ("tasked", {}, "task 'tracking' is none of classification, segmentation, detection"),
        ("needy", {}, "needs arguments that are not given: path"),
        ("nothing", {}, "returned NoneType"),
    ],
)
def test_a_function_that_does_not_fit(user, function, options, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"{user}:{function}", **options)


def test_a_file_that_does_not_import(tmp_path):
    (tmp_path / "bad.py").write_text("def f(:")
    with pytest.raises(ModelError, match="cannot be imported"):
        load_model(f"{tmp_path}/bad.py:f")


def test_weights_that_are_not_finite(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef f():\n    n = torch.nn.Linear(1, 1)\n"
        "    n.bias.data.fill_(float('nan'))\n    return n\n"
    )
    with pytest.raises(ModelError, match="NaN or infinite weights"):
        load_model(f"{tmp_path}/mine.py:f")


def test_a_model_without_class_scores(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef f():\n    return torch.nn.Identity(), {'input_size': 4}\n"
    )
    model = load_model(f"{tmp_path}/mine.py:f")
    with pytest.raises(ModelError, match=r"class scores \[N, classes\]"):
        model.scores(images(model))
