"""One ViT with two heads: its parts, its folder, its names."""

import json
from dataclasses import replace

import pytest
import torch

from iqvit.errors import ModelError
from iqvit.models.from_multitask import split_head
from iqvit.models.multitask.config import MultitaskConfig
from iqvit.models.multitask.folder import changed, load_multitask, save_multitask
from iqvit.models.multitask.model import JointOutputs, Multitask, at_size
from iqvit.models.rtdetr.config import ResNetConfig, RTDetrConfig
from iqvit.models.rtdetr.model import Detections
from iqvit.models.segmenter import ClassMap
from iqvit.models.spec import load_model
from iqvit.models.vit import ViTConfig, ViTEncoder
from iqvit.models.weights import Weights, read_weights

IMAGE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(small_multitask):
    return load_multitask(small_multitask)[0]


def test_the_encoder_runs_once(model):
    runs = []
    model.vit.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        class_map, boxes, logits = model(IMAGE)
    assert len(runs) == 1
    assert (class_map.shape, boxes.shape, logits.shape) == ((2, 3, 4, 6), (2, 20, 4), (2, 20, 2))


def test_each_head_alone_gives_what_it_gives_in_the_whole(model):
    with torch.no_grad():
        found = JointOutputs(model, 40)(IMAGE)
        assert torch.equal(ClassMap(model.segmenter())(IMAGE), found.classes)
        for alone, part in zip(Detections(model.detector, 40)(IMAGE), found[1:], strict=True):
            assert torch.equal(alone, part)
    assert set(found.classes.unique().tolist()) == {0, 1, 2}
    shared = {id(p) for p in model.segmenter().parameters()}
    assert shared < {id(p) for p in model.parameters()}
    assert model.segmenter().encoder is model.detector.backbone.vit


def test_a_folder_and_its_heads_by_name(small_multitask, model):
    whole, maps, boxes = (
        load_model(f"multitask:{small_multitask}{head}")
        for head in ("", "+segmentation", "+detection")
    )
    assert (whole.task, maps.task, boxes.task) == ("multitask", "segmentation", "detection")
    assert whole.labels == maps.labels == ("ground", "red", "green")
    assert whole.box_labels == boxes.labels == ("red", "green")
    assert maps.box_labels is boxes.box_labels is boxes.palette is None
    assert whole.palette == maps.palette == ((90, 90, 90), (220, 0, 0), (0, 220, 0))
    assert whole.input_shape == (1, 3, 64, 96)
    with torch.no_grad():
        found = whole.module(IMAGE)
        assert torch.equal(maps.module(IMAGE), found.classes)
        assert torch.equal(boxes.module(IMAGE).boxes, found.boxes)
        assert torch.equal(found.boxes, JointOutputs(model, 40)(IMAGE).boxes)
    parts = [sum(p.numel() for p in part.module.parameters()) for part in (whole, maps, boxes)]
    assert max(parts[1:]) < parts[0] < sum(parts[1:])


def test_a_folder_whose_name_ends_like_a_head(tmp_path, model, small_multitask):
    place = tmp_path / "street+detection"
    card = load_multitask(small_multitask)[1]
    save_multitask(place, model, card)
    assert split_head(str(place)) == (str(place), None)
    assert split_head(f"{place}+segmentation") == (str(place), "segmentation")
    assert load_model(f"multitask:{place}").task == "multitask"


def test_another_size_keeps_the_weights(model, small_multitask):
    other, _, notes = load_multitask(small_multitask, image_size=(96, 64), drop_path=0.2)
    assert "trained at 64x96, used at 96x64" in notes
    assert (other.config.image_size, other.config.backbone.drop_path) == ((96, 64), 0.2)
    same = at_size(model, changed(model.config, image_size=(96, 64), drop_path=0.2))
    for name, tensor in other.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
    assert at_size(model, model.config) is model
    with torch.no_grad():
        assert other(IMAGE.transpose(2, 3))[0].shape == (2, 3, 6, 4)


def test_a_fresh_one(small_multitask):
    mask = load_model("multitask:vit_tiny+mask+discrete", num_classes=4, input_size=(96, 128))
    config = mask.module.model.config
    assert (config.decoder, config.detector.sampling) == ("mask", "discrete")
    assert (config.classes, config.detector.classes, config.image_size) == (4, 4, (96, 128))
    assert mask.weights == "random, seed 0"
    head = load_model("multitask:vit_tiny+segmentation", num_classes=4, input_size=(96, 128))
    assert head.task == "segmentation"
    assert isinstance(head.module, ClassMap)


def test_weights_of_the_encoder_or_of_all(tmp_path, monkeypatch, small_multitask, model):
    sizes = model.config.backbone
    monkeypatch.setattr(
        "iqvit.models.from_multitask.PRESETS",
        {"small": lambda classes, box_classes: replace(model.config, classes=classes)},
    )
    all_of_it = small_multitask / "model.safetensors"
    loaded = load_model("multitask:small", num_classes=3, weights=all_of_it)
    assert torch.equal(loaded.module.model.vit.cls_token, model.vit.cls_token)
    assert not any("random" in note for note in loaded.notes)

    encoder = ViTEncoder(
        ViTConfig((64, 96), 16, sizes.width, sizes.depth, sizes.heads, sizes.mlp_ratio)
    )
    encoder.initialise()
    monkeypatch.setattr(
        "iqvit.models.spec.read_weights",
        lambda _: Weights({**encoder.state_dict(), "head.weight": torch.ones(3, 32)}, "timm"),
    )
    loaded = load_model("multitask:small", num_classes=3, weights=all_of_it)
    assert torch.equal(loaded.module.model.vit.cls_token, encoder.cls_token)
    assert loaded.notes[-1] == "the weights of both heads are random"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("vit_huge", {"num_classes": 3}, "neither a folder nor one of vit_tiny"),
        ("vit_tiny+linear", {"num_classes": 3}, "neither a folder nor one of vit_tiny"),
        ("vit_tiny", {}, "give its number of classes"),
        ("vit_tiny", {"num_classes": 3, "input_size": (100, 64)}, "100, is not a multiple of"),
        ("vit_tiny", {"num_classes": 1}, "2 to 255 classes, not 1"),
    ],
)
def test_mistakes_in_names(spec, options, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"multitask:{spec}", **options)


def test_a_backbone_that_is_no_vit_is_refused():
    detector = RTDetrConfig((64, 96), 2, ResNetConfig(8, (8, 8, 16, 16), (1, 1, 1, 1)), queries=20)
    with pytest.raises(ModelError, match="plain ViT as encoder"):
        Multitask(MultitaskConfig(detector, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "detection"}, "is of a model for detection, not for multitask"),
        ({"labels": ["ground"]}, "1 labels where 3 are needed"),
        ({"box_labels": ["red"]}, "1 box labels where 2 are needed"),
        ({"palette": [[0, 0, 0]]}, "1 colours where 3 are needed"),
        ({"palette": [[0]]}, "no config.json of a multi-task model"),
        ({"config": {}}, "no key 'detector'"),
        ({"config": {"detector": {}, "depth": 3}}, "has no 'depth'"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, small_multitask, change, message):
    content = json.loads((small_multitask / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ModelError, match=message):
        load_multitask(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path, small_multitask):
    weights = read_weights(small_multitask / "model.safetensors")
    lacking = {n: t for n, t in weights.tensors.items() if not n.startswith("segmentation")}
    with pytest.raises(ModelError, match=r"missing \(2\)"):
        load_multitask(small_multitask, weights=Weights(lacking, "other.safetensors"))
