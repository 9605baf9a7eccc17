"""Detectors by name: rtdetr: and transformers:, and the integer arithmetic of what they choose."""

import json

import pytest
import torch
from torch import nn

from iqvit.canonical import OPS, arguments
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.errors import ModelError, UnsupportedOp
from iqvit.models import from_rtdetr
from iqvit.models.detections import best_pairs
from iqvit.models.labels import coco_labels
from iqvit.models.rtdetr.config import PyramidConfig, RTDetrConfig
from iqvit.models.rtdetr.folder import DetectorCard, save_detector
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.spec import load_model
from iqvit.models.vit import ViTConfig, ViTEncoder
from iqvit.models.weights import Weights, load_weights

HALF = (0.5, 0.5, 0.5)


def small(folder):
    backbone = PyramidConfig(width=32, depth=2, heads=2, mlp_ratio=2)
    sizes = {"encoder_ffn": 32, "rep_blocks": 1, "decoder_ffn": 32, "decoder_layers": 1}
    config = RTDetrConfig((64, 96), 3, backbone, width=32, heads=2, queries=20, **sizes)
    torch.manual_seed(0)
    detector = RTDetr(config).eval()
    save_detector(folder, detector, DetectorCard(("a", "b", "c"), HALF, HALF))
    return detector


def test_a_folder(tmp_path):
    detector = small(tmp_path)
    model = load_model(f"rtdetr:{tmp_path}")
    assert (model.task, model.input_shape, model.labels) == (
        "detection",
        (1, 3, 64, 96),
        ("a", "b", "c"),
    )
    assert (model.crop, model.resize, model.mean, model.std) == ("squash", (64, 96), HALF, HALF)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, (boxes, logits) = model.module(x), detector(x)
    assert found.boxes.shape == (1, 60, 4)
    pair = logits[0].flatten().argmax()
    torch.testing.assert_close(found.scores[0, 0], logits[0].flatten()[pair].sigmoid())
    torch.testing.assert_close(found.boxes[0, 0], boxes[0, pair // 3].sigmoid())
    assert found.labels[0, 0] == pair % 3


def test_a_folder_changed(tmp_path):
    small(tmp_path)
    kept = {"drop_path": 0.2, "sampling": "discrete", "queries": 7, "image_size": (96, 64)}
    loaded = from_rtdetr.load(str(tmp_path), **kept)
    config = loaded.detector.config
    assert (config.sampling, config.queries, config.image_size) == ("discrete", 7, (96, 64))
    assert config.backbone.drop_path == 0.2
    assert loaded.notes == ("trained at 64x96, used at 96x64",)
    assert loaded.weights == str(tmp_path / "model.safetensors")
    other = RTDetrConfig((64, 64), 4, PyramidConfig(32, 2, 2, 2), queries=20)
    weights = Weights(RTDetr(other).state_dict(), "other.pth")
    with pytest.raises(ModelError, match="trained for 4 classes, the model is for 3"):
        from_rtdetr.load(str(tmp_path), weights=weights)


def test_fresh_ones():
    timm = ViTEncoder(ViTConfig(image_size=64))
    timm.initialise()
    encoder = Weights({**timm.state_dict(), "head.weight": torch.zeros(10, 192)}, "timm.pth")
    sizes = {"classes": 2, "image_size": (64, 128), "queries": 30}
    loaded = from_rtdetr.load("vit_tiny+discrete", weights=encoder, **sizes)
    assert loaded.detector.config.sampling == "discrete"
    assert loaded.card == DetectorCard(("class 0", "class 1"), HALF, HALF)
    assert "the weights of the detector behind the ViT are random" in loaded.notes
    assert any("resampled from 4x4 to 4x8" in note for note in loaded.notes)
    own = loaded.detector.backbone.vit.state_dict()
    assert torch.equal(own["blocks.3.mlp.fc1.weight"], timm.blocks[3].mlp.fc1.weight)
    whole = Weights(loaded.detector.state_dict(), "whole.pth")
    again = from_rtdetr.load("vit_tiny", weights=whole, **sizes)
    assert again.detector.config.sampling == "default"
    assert torch.equal(next(again.detector.parameters()), next(loaded.detector.parameters()))
    coco = from_rtdetr.load("v2_s", image_size=(160, 160))
    assert coco.card.labels == coco_labels()
    assert (len(coco_labels()), coco_labels()[-1]) == (80, "toothbrush")


def transformers_folder(folder, queries=20, version="V2"):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = getattr(transformers, f"RTDetr{version}Config")(
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=4,
        num_queries=queries,
        anchor_image_size=[32, 32],
        id2label={0: "ball", 1: "box"},
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"RTDetr{version}ForObjectDetection")(config).eval()
    model.save_pretrained(folder)
    processor = {"do_normalize": False, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    processor |= {"resample": 2, "size": {"height": 64, "width": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("version", ["", "V2"])
def test_transformers_folder(tmp_path, version):
    theirs = transformers_folder(tmp_path, version=version)
    theirs.config.anchor_image_size = None
    model = load_model(f"transformers:{tmp_path}")
    assert (model.task, model.labels, model.input_shape) == (
        "detection",
        ("ball", "box"),
        (1, 3, 64, 96),
    )
    assert (model.mean, model.std, model.crop) == ((0.0,) * 3, (1.0,) * 3, "squash")
    assert model.weights == str(tmp_path / "model.safetensors")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(x), model.module(x)
    pair = expected.logits[0].flatten().topk(40).indices
    torch.testing.assert_close(found.scores[0], expected.logits[0].flatten()[pair].sigmoid())
    torch.testing.assert_close(found.boxes[0], expected.pred_boxes[0, pair // 2])
    assert torch.equal(found.labels[0], pair % 2)
    captured = capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    assert captured.output_names == ("boxes", "scores", "labels")
    canonical = canonicalize(captured)
    called = [n for n in canonical.module.graph.nodes if n.op == "call_function"]
    assert [OPS[n.target].name for n in called].count("deformable_attention") == 2
    with torch.no_grad():
        torch.testing.assert_close(tuple(canonical(x).values()), tuple(found), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="64x100 is not a multiple of 32"):
        load_model(f"transformers:{tmp_path}", input_size=(64, 100))


def test_transformers_with_more_queries_than_tokens(tmp_path):
    transformers_folder(tmp_path, queries=22)
    with pytest.raises(ModelError, match=r"22 queries are asked for.* 32x32 has only 21 tokens"):
        load_model(f"transformers:{tmp_path}", input_size=32)


def test_names_that_the_model_has_keep_their_prefix():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(2, 2)
            self.head = self.model

    made, read = Shared(), torch.rand(2, 2)
    load_weights(made, Weights({"model.weight": read, "model.bias": torch.zeros(2)}, "w.pth"))
    assert torch.equal(made.head.weight, read)


class Choice(nn.Module):
    """Scores of 6 boxes in 4 classes; the query and the class of the best pairs, as written."""

    def __init__(self, parts):
        super().__init__()
        self.score, self.parts = nn.Linear(16, 4), parts

    def forward(self, x):
        tokens = x.reshape(1, 6, 16)
        best = self.score(tokens).flatten(1).topk(9).indices
        return self.parts(best)


@pytest.mark.parametrize(
    "parts",
    [
        lambda i: (i // 4, i % 4),
        lambda i: (torch.div(i, 4, rounding_mode="trunc"), i - i // 4 * 4),
        lambda i: (torch.div(i, 4, rounding_mode="floor"), i - 4 * (i // 4)),
        lambda i: (torch.floor_divide(i, 4), torch.fmod(i, 4)),
    ],
    ids=["operators", "trunc", "floor", "functions"],
)
def test_query_and_class_of_a_pair(parts):
    torch.manual_seed(0)
    net = Choice(parts).eval()
    model = canonicalize(capture(net, (1, 3, 4, 8), mean=(0.0,) * 3, std=(1.0,) * 3))
    nodes = [n for n in model.module.graph.nodes if n.op == "call_function"]
    divided = {
        OPS[n.target].name: arguments(n)["divisor"]
        for n in nodes
        if "divisor" in OPS[n.target].params
    }
    assert divided == {"floor_divide": 4, "remainder": 4}
    x = torch.rand(1, 3, 4, 8)
    with torch.no_grad():
        assert all(map(torch.equal, model(x).values(), net(x)))


def test_other_arithmetic_of_indices_is_refused():
    net = Choice(lambda i: i // 4 - 4 * i).eval()
    with pytest.raises(UnsupportedOp, match="int64"):
        canonicalize(capture(net, (1, 3, 4, 8), mean=(0.0,) * 3, std=(1.0,) * 3))


def test_best_pairs_by_hand():
    logits = torch.tensor([[[0.0, 3.0], [2.0, -1.0], [1.0, 4.0]]])
    boxes = torch.arange(12.0).reshape(1, 3, 4)
    found = best_pairs(boxes, logits, 4)
    assert found.labels.tolist() == [[1, 1, 0, 0]]
    assert torch.equal(found.boxes, boxes[:, [2, 0, 1, 2]])
    torch.testing.assert_close(found.scores, torch.tensor([[4.0, 3.0, 2.0, 1.0]]).sigmoid())
