"""RT-DETRv2 in float, against transformers' on the same random weights."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from iqvit.capture import capture
from iqvit.errors import ModelError
from iqvit.models.rtdetr.config import (
    PyramidConfig,
    ResNetConfig,
    RTDetrConfig,
    rtdetr_resnet_tiny,
    rtdetr_vit_tiny,
    rtdetrv2_s,
)
from iqvit.models.rtdetr.decoder import LIMIT, NO_ANCHOR, make_anchors
from iqvit.models.rtdetr.deformable import read_bilinear, read_cell
from iqvit.models.rtdetr.encoder import sine_position
from iqvit.models.rtdetr.folder import DetectorCard, load_detector, save_detector
from iqvit.models.rtdetr.loading import load_rtdetr_weights
from iqvit.models.rtdetr.model import Detections, RTDetr
from iqvit.models.rtdetr.names import to_our_names
from iqvit.models.rtdetr.pyramid import ViTPyramid
from iqvit.models.rtdetr.training import Denoising, detection_loss, training_forward
from iqvit.models.vit import ViT, ViTConfig
from iqvit.models.vit_loading import load_vit_encoder
from iqvit.models.weights import Weights, read_weights

SMALL = RTDetrConfig(
    image_size=(64, 96),
    classes=5,
    backbone=ResNetConfig(stem=8, channels=(8, 12, 16, 24), depths=(1, 2, 1, 1)),
    width=32,
    heads=4,
    encoder_ffn=48,
    queries=10,
    decoder_layers=2,
    decoder_ffn=64,
    points=2,
)
SMALL_VIT = replace(SMALL, backbone=PyramidConfig(width=24, depth=1, heads=3), rep_blocks=1)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def randomise(model: nn.Module) -> None:
    """Random values everywhere, so that a swap of two names shows."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("num_batches_tracked", "n_points_scale")):
            continue
        elif tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn_like(tensor))
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5)


def theirs_of(config: RTDetrConfig, frozen: bool = True) -> nn.Module:
    """transformers' model of the same sizes, with random weights, in eval mode."""
    transformers = pytest.importorskip("transformers")
    sizes = config.backbone
    assert isinstance(sizes, ResNetConfig)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=sizes.stem,
        hidden_sizes=list(sizes.channels),
        depths=list(sizes.depths),
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    model = transformers.RTDetrV2ForObjectDetection(
        transformers.RTDetrV2Config(
            backbone_config=backbone,
            freeze_backbone_batch_norms=frozen,
            encoder_in_channels=list(sizes.channels[1:]),
            encoder_hidden_dim=config.width,
            d_model=config.width,
            decoder_in_channels=[config.width] * 3,
            encoder_ffn_dim=config.encoder_ffn,
            decoder_ffn_dim=config.decoder_ffn,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            decoder_layers=config.decoder_layers,
            decoder_n_points=config.points,
            decoder_method=config.sampling,
            num_queries=config.queries,
            hidden_expansion=config.expansion,
            num_labels=config.classes,
            num_denoising=20,
        )
    )
    randomise(model)
    return model.eval()


def random_model(config: RTDetrConfig) -> RTDetr:
    model = RTDetr(config)
    randomise(model)
    return model.eval()


def ours_with(config: RTDetrConfig, tensors: dict[str, torch.Tensor]) -> RTDetr:
    model = RTDetr(config)
    load_rtdetr_weights(model, Weights(dict(tensors), "test"))
    return model.eval()


def no_grad(model: nn.Module, x: torch.Tensor):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(("sampling", "expansion"), [("default", 0.5), ("discrete", 1.0)])
def test_parity_with_transformers(sampling: str, expansion: float):
    config = replace(SMALL, sampling=sampling, expansion=expansion)
    theirs = theirs_of(config)
    ours = ours_with(config, theirs.state_dict())
    x = torch.rand(2, 3, *config.image_size, dtype=torch.float64)
    expected = no_grad(theirs.double(), x)
    boxes, logits = no_grad(ours.double(), x)
    # The position embeddings are float32 in one and the other.
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes.sigmoid(), expected.pred_boxes, rtol=0, atol=1e-6)
    assert expected.pred_boxes.std() > 0.1


def test_parity_where_border_anchors_are_chosen():
    """A level of more than 50 cells has anchors that are not used; here they are the best ones."""
    config = replace(SMALL, image_size=(32, 416), queries=60)
    theirs = theirs_of(config)
    ours = ours_with(config, theirs.state_dict())
    assert not ours.decoder.all_valid
    x = torch.rand(1, 3, *config.image_size, dtype=torch.float64)
    expected = no_grad(theirs.double(), x)
    boxes, logits = no_grad(ours.double(), x)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(boxes.sigmoid(), expected.pred_boxes, rtol=0, atol=2e-4)


# ours -> the authors', written down from their modules rather than from our rules
AUTHORS = (
    (r"^backbone\.stem\.0", "backbone.conv1.conv1_1"),
    (r"^backbone\.stem\.1", "backbone.conv1.conv1_2"),
    (r"^backbone\.stem\.2", "backbone.conv1.conv1_3"),
    (r"^(backbone\.stages\.0\..*)\.shortcut\.", r"\1.short."),
    (r"\.shortcut\.", ".short.conv."),
    (r"^backbone\.stages\.(\d)\.(\d)", r"backbone.res_layers.\1.blocks.\2"),
    (r"\.convs\.0", ".branch2a"),
    (r"\.convs\.1", ".branch2b"),
    (r"^encoder\.aifi\.", "encoder.encoder.0.layers."),
    (r"^decoder\.layers\.", "decoder.decoder.layers."),
    (r"\.ffn\.fc([12])", r".linear\1"),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
)


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def authors_names(ours: RTDetr) -> dict[str, torch.Tensor]:
    """The same weights under the names, and with the extra buffers, of the authors' checkpoints."""
    tensors = {
        renamed(name, AUTHORS): tensor
        for name, tensor in ours.state_dict().items()
        # frozen BatchNorms do not count
        if not (name.startswith("backbone.") and name.endswith("num_batches_tracked"))
    }
    for name in [n for n in tensors if ".self_attn.q_proj." in n]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    tensors["decoder.anchors"] = torch.full((1, 4, 4), torch.inf)
    tensors["decoder.valid_mask"] = torch.ones(1, 4, 1, dtype=torch.bool)
    tensors["decoder.decoder.layers.0.cross_attn.num_points_scale"] = torch.ones(6)
    return tensors


def test_the_authors_checkpoint_loads_and_its_average_is_preferred(tmp_path):
    source = random_model(SMALL)
    named = authors_names(source)
    for name in (
        "backbone.conv1.conv1_3.norm.running_mean",
        "backbone.res_layers.0.blocks.0.short.conv.weight",
        "backbone.res_layers.1.blocks.0.short.conv.norm.weight",
        "encoder.encoder.0.layers.0.self_attn.in_proj_bias",
        "decoder.decoder.layers.1.linear2.weight",
        "decoder.dec_bbox_head.0.layers.2.bias",
    ):
        assert name in named
    path = tmp_path / "rtdetrv2.pth"
    worse = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    torch.save({"model": worse, "ema": {"module": named, "updates": 3}, "last_epoch": 1}, path)
    target = RTDetr(SMALL).eval()
    notes = load_rtdetr_weights(target, read_weights(path))
    x = torch.rand(1, 3, *SMALL.image_size)
    for got, expected in zip(no_grad(target, x), no_grad(source, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert any("['ema']['module']" in note for note in notes)
    assert any("authors" in note for note in notes)


def test_names_of_published_transformers_checkpoints():
    """Those were saved before version 5, which renamed parts, and hold the heads only once."""
    theirs = theirs_of(SMALL)
    before_version_5 = (
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.fc", ".fc"),
        (r"\.encoder\.aifi\.0\.", ".encoder.encoder.0."),
    )
    old = {
        renamed(name, before_version_5): tensor
        for name, tensor in theirs.state_dict().items()
        if not name.startswith(("class_embed", "bbox_embed"))
    }
    assert old.keys() - theirs.state_dict().keys()
    new, before = ours_with(SMALL, theirs.state_dict()), ours_with(SMALL, old)
    for name, tensor in new.state_dict().items():
        assert torch.equal(before.state_dict()[name], tensor), name


def test_weights_that_do_not_fit():
    tensors = RTDetr(SMALL).state_dict()
    other = RTDetr(replace(SMALL, classes=3))
    with pytest.raises(ModelError, match="trained for 5 classes, the model is for 3"):
        load_rtdetr_weights(other, Weights(tensors, "five.pth"))
    del tensors["decoder.query_pos_head.layers.0.weight"]
    with pytest.raises(ModelError, match=r"decoder\.query_pos_head\.layers\.0\.weight"):
        ours_with(SMALL, tensors)
    named = theirs_of(SMALL).state_dict()
    named["class_embed.0.bias"] = named["class_embed.0.bias"] + 1
    with pytest.raises(ModelError, match=r"another name for decoder\.dec_score_head\.0\.bias"):
        ours_with(SMALL, named)


def objects(counts: list[int]) -> list[dict[str, torch.Tensor]]:
    return [
        {"class_labels": torch.randint(0, 5, (n,)), "boxes": 0.2 + 0.4 * torch.rand(n, 4)}
        for n in counts
    ]


def test_losses_and_gradients_are_those_of_transformers():
    theirs = theirs_of(SMALL, frozen=False)
    ours = ours_with(SMALL, theirs.state_dict())
    theirs.double().train()
    ours.double().train()
    x = torch.rand(2, 3, *SMALL.image_size, dtype=torch.float64)
    labels = objects([2, 1])
    for label in labels:
        label["boxes"] = label["boxes"].double()
    torch.manual_seed(1)
    expected = theirs(x, labels=labels)
    expected.loss.backward()
    torch.manual_seed(1)
    outputs = training_forward(ours, x, labels, Denoising(queries=20))
    loss, parts = detection_loss(outputs, labels)
    loss.backward()
    assert parts.keys() == expected.loss_dict.keys()
    assert {"loss_vfl_aux_1", "loss_giou_dn_1"} <= parts.keys()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=0)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    wanted, _ = to_our_names(gradients, "gradients")
    assert wanted.keys() == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_training_without_objects_or_denoising():
    model = RTDetr(SMALL_VIT).train()
    x = torch.rand(2, 3, *SMALL.image_size)
    labels = objects([0, 0])
    outputs = training_forward(model, x, labels, Denoising(queries=20))
    assert outputs.denoising is None
    assert outputs.logits.shape == (2, 2, 10, 5)
    loss, parts = detection_loss(outputs, labels)
    assert torch.isfinite(loss)
    assert parts["loss_bbox"] == 0
    labels = objects([3, 0])
    outputs = training_forward(model, x, labels)
    assert outputs.boxes.shape == (2, 2, 10, 4)
    assert detection_loss(outputs, labels)[1]["loss_bbox"] > 0


@pytest.mark.parametrize(
    ("config", "sampling"),
    [(SMALL, "discrete"), (SMALL_VIT, "default")],
    ids=["resnet", "vit"],
)
def test_captures_as_it_runs(config: RTDetrConfig, sampling: str):
    config = replace(config, sampling=sampling, rep_blocks=1)
    model = Detections(random_model(config), top=20).eval()
    height, width = config.image_size
    captured = capture(model, (1, 3, height, width), mean=(0, 0, 0), std=(1, 1, 1))
    x = torch.rand(1, 3, height, width)
    outputs = no_grad(captured.module, x)
    for got, expected in zip(outputs, no_grad(model, x), strict=True):
        assert torch.equal(got, expected)
    assert [tuple(t.shape) for t in outputs] == [(1, 20, 4), (1, 20), (1, 20)]


def test_detections_are_the_best_pairs_of_query_and_class():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor):
            logits = torch.tensor([[[0.0, 3.0], [2.0, 1.0], [-1.0, -2.0]]])
            return torch.tensor([[[1.0] * 4, [2.0] * 4, [3.0] * 4]]), logits

    boxes, scores, labels = Detections(Fixed(), top=4)(torch.zeros(1, 3, 1, 1))
    assert labels.tolist() == [[1, 0, 1, 0]]
    torch.testing.assert_close(scores, torch.tensor([[3.0, 2.0, 1.0, 0.0]]).sigmoid())
    torch.testing.assert_close(boxes[0, :, 0], torch.tensor([1.0, 2.0, 2.0, 1.0]).sigmoid())
    with pytest.raises(ModelError, match="the best 51 detections"):
        Detections(RTDetr(SMALL), top=51)


def test_discrete_sampling_rounds_half_a_cell_further_and_clamps():
    values = torch.arange(6.0).reshape(1, 1, 6)  # two rows of three
    places = torch.tensor([[0.49, 0.2], [0.51, 0.2], [0.2, 0.9], [-0.4, -2.0], [1.3, 1.2]])
    found = read_cell(values, places.reshape(1, 1, 5, 2), (2, 3))
    # column floor(3x + 1/2), row floor(2y + 1/2)
    assert found.flatten().tolist() == [1.0, 2.0, 4.0, 0.0, 5.0]


def test_bilinear_sampling_is_exact_in_cell_centres_and_zero_outside():
    values = torch.arange(1.0, 7.0).reshape(1, 1, 6)
    places = torch.tensor([[1 / 6, 0.25], [5 / 6, 0.75], [1 / 3, 0.5], [0.0, 0.25], [2.0, 0.5]])
    found = read_bilinear(values, places.reshape(1, 1, 5, 2), (2, 3))
    expected = torch.tensor([1.0, 6.0, 3.0, 0.5, 0.0])
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-5)


def test_box_logits_replace_the_inverse_sigmoid():
    inverse = pytest.importorskip(
        "transformers.models.rt_detr_v2.modeling_rt_detr_v2"
    ).inverse_sigmoid
    u = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    error = (u.clamp(-LIMIT, LIMIT) - inverse(u.sigmoid())).abs().max()
    assert 1e-6 < error < 1.1e-5


def test_anchors_and_positions_of_an_oblong_image():
    anchors, valid = make_anchors(((4, 60), (2, 30), (1, 15)))
    assert anchors.shape == (1, 4 * 60 + 2 * 30 + 15, 4)
    # Half of 1/60 is below the margin of 0.01: first and last column of the finest level.
    assert (valid[0, :240, 0].reshape(4, 60) == 0).nonzero()[:, 1].unique().tolist() == [0, 59]
    assert valid[0, 240:].all()
    assert torch.all(anchors[0, 0] == NO_ANCHOR)
    second_row = anchors[0, 61].sigmoid()
    torch.testing.assert_close(second_row, torch.tensor([1.5 / 60, 1.5 / 4, 0.05, 0.05]))
    position = sine_position((2, 3), 8)[0]
    angle = torch.tensor([1.0, 0.01])
    expected = torch.cat([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()])
    torch.testing.assert_close(position[5], expected)


def test_the_linear_layer_is_a_transposed_convolution():
    backbone = ViTPyramid(PyramidConfig(width=8, depth=1, heads=2), (32, 64))
    reference = nn.ConvTranspose2d(8, 4, 2, stride=2)
    with torch.no_grad():
        weight = backbone.up.weight.reshape(2, 2, 4, 8)
        bias = torch.arange(4.0)
        backbone.up.bias.copy_(bias.repeat(4))
        reference.weight.copy_(weight.permute(3, 2, 0, 1))
        reference.bias.copy_(bias)
        fine, middle, coarse = backbone(torch.rand(2, 3, 32, 64))
        torch.testing.assert_close(fine, reference(middle), rtol=1e-5, atol=1e-5)
    assert [t.shape for t in (fine, middle, coarse)] == [(2, 4, 4, 8), (2, 8, 2, 4), (2, 8, 1, 2)]


def test_timm_weights_go_into_the_vit_and_are_resampled():
    classifier = ViT(ViTConfig(image_size=64, width=24, depth=1, heads=3, classes=7))
    backbone = ViTPyramid(PyramidConfig(width=24, depth=1, heads=3), (64, 96))
    notes = load_vit_encoder(backbone.vit, Weights(classifier.state_dict(), "vit.safetensors"))
    assert any("from 4x4 to 4x6" in note for note in notes)
    got, expected = backbone.vit.state_dict(), classifier.state_dict()
    assert torch.equal(got["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"])
    assert torch.equal(got["pos_embed"][:, 0], expected["pos_embed"][:, 0])
    bad = classifier.state_dict() | {"pos_embed": torch.zeros(1, 12, 24)}
    # As many patches, but in another shape.
    oblong = ViTPyramid(PyramidConfig(width=24, depth=1, heads=3), (32, 128))
    notes = load_vit_encoder(oblong.vit, Weights(classifier.state_dict(), "vit.safetensors"))
    assert any("from 4x4 to 2x8" in note for note in notes)
    own = load_vit_encoder(backbone.vit, Weights(backbone.vit.state_dict(), "own.safetensors"))
    assert own == ()
    with pytest.raises(ModelError, match="12 tokens is not a class token and a square"):
        load_vit_encoder(backbone.vit, Weights(bad, "vit.safetensors"))


def test_a_folder_comes_back_and_at_another_size(tmp_path):
    model = random_model(SMALL_VIT)
    card = DetectorCard(tuple("abcde"), std=(0.5, 0.25, 0.125))
    save_detector(tmp_path, model, card)
    again, read, _ = load_detector(tmp_path)
    assert (read, again.config) == (card, model.config)
    x = torch.rand(1, 3, 64, 96)
    for got, expected in zip(no_grad(again, x), no_grad(model, x), strict=True):
        assert torch.equal(got, expected)
    larger, _, notes = load_detector(tmp_path, (96, 128))
    assert no_grad(larger, torch.rand(1, 3, 96, 128))[0].shape == (1, 10, 4)
    assert any("trained at 64x96, used at 96x128" in note for note in notes)
    content = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"task": "segmentation"}, "for segmentation"),
        ({"labels": ["a"]}, "1 labels for 5 classes"),
        ({"config": content["config"] | {"depth": 3}}, "no field 'depth'"),
        ({"config": content["config"] | {"backbone": {"kind": "swin"}}}, "backbone kind 'swin'"),
        ({"mean": None}, "not the config.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        with pytest.raises(ModelError, match=message):
            load_detector(tmp_path)
    with pytest.raises(ModelError, match="5 classes"):
        save_detector(tmp_path, model, DetectorCard(("a",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (64, 100)}, "width of the image, 100"),
        ({"image_size": (48, 96)}, "height of the image, 48"),
        ({"queries": 200}, "200 queries are asked for, but an image of 64x96 has only 126 tokens"),
        ({"heads": 5}, "not a multiple of the heads, 5"),
        ({"width": 30, "heads": 5}, "position embedding"),
        ({"sampling": "nearest"}, "'nearest' is not one of default, discrete"),
        ({"classes": 0}, "no size below 1"),
        ({"expansion": 0.0}, "expansion 0.0"),
    ],
)
def test_impossible_configs(changes: dict, message: str):
    with pytest.raises(ModelError, match=message):
        replace(SMALL, **changes)


def test_the_named_configs():
    sizes = [rtdetrv2_s(), rtdetr_vit_tiny(classes=3), rtdetr_resnet_tiny(classes=3)]
    assert [config.tokens for config in sizes] == [8400, 2100, 2100]
    assert all(RTDetrConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c for c in sizes)
