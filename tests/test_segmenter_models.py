"""Segmenters: their arithmetic, names and sizes, and the folders that they are kept in."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from iqvit import serialize
from iqvit.capture import capture
from iqvit.cli import main
from iqvit.commands.options import parse_size
from iqvit.commands.quantize import calibration_images
from iqvit.errors import ModelError
from iqvit.models.from_segmenter import load, timm_sizes
from iqvit.models.segmenter import (
    DECODERS,
    ClassMap,
    Segmenter,
    SegmenterConfig,
    at_size,
    load_encoder,
)
from iqvit.models.segmenter_folder import SegmenterMeta, load_segmenter, save_segmenter
from iqvit.models.spec import load_model
from iqvit.models.vit import DropPath
from iqvit.models.weights import Weights

SIZES = {"image_size": (32, 48), "classes": 5, "patch_size": 8, "width": 24, "depth": 2}
META = SegmenterMeta(
    tuple("abcde"), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), tuple((i, 0, 255) for i in range(5))
)
PUBLIC_WIDTH, PUBLIC_CLASSES, PUBLIC_GRID = 128, 7, (2, 3)


def small(**sizes) -> SegmenterConfig:
    return SegmenterConfig(**{**SIZES, "heads": 3, "decoder_heads": 2, **sizes})


def random_segmenter(**sizes) -> Segmenter:
    """All weights random, LayerNorms and biases too, where a swap of names would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        segmenter = Segmenter(small(**sizes)).eval()
        for parameter in segmenter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return segmenter


def pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator)


# The public repository's names and shapes, written out


def block_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    width = PUBLIC_WIDTH
    linears = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in ("norm1", "norm2"):
        shapes |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
    for name, shape in linears.items():
        shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
    return shapes


def public_shapes(decoder: str) -> dict[str, tuple[int, ...]]:
    width, classes = PUBLIC_WIDTH, PUBLIC_CLASSES
    shapes = {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, 1 + math.prod(PUBLIC_GRID), width),
        "encoder.patch_embed.proj.weight": (width, 3, 16, 16),
        "encoder.patch_embed.proj.bias": (width,),
        **block_shapes("encoder.blocks.0"),
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
        "encoder.head.weight": (1000, width),
        "encoder.head.bias": (1000,),
    }
    if decoder == "linear":
        return shapes | {"decoder.head.weight": (classes, width), "decoder.head.bias": (classes,)}
    return shapes | {
        "decoder.cls_emb": (1, classes, width),
        "decoder.proj_patch": (width, width),
        "decoder.proj_classes": (width, width),
        **block_shapes("decoder.blocks.0"),
        **block_shapes("decoder.blocks.1"),
        "decoder.proj_dec.weight": (width, width),
        "decoder.proj_dec.bias": (width,),
        "decoder.decoder_norm.weight": (width,),
        "decoder.decoder_norm.bias": (width,),
        "decoder.mask_norm.weight": (classes,),
        "decoder.mask_norm.bias": (classes,),
    }


def public_tensors(decoder: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) != 2 else 0.08)
        for name, shape in public_shapes(decoder).items()
    }


VARIANT = """
amp: false
dataset_kwargs: {dataset: ade20k, image_size: 512, crop_size: 512}
inference_kwargs: {im_size: 512, window_size: 512, window_stride: 512}
net_kwargs:
  backbone: vit_mini_patch16_384
  d_model: 128
  decoder: %s
  distilled: false
  drop_path_rate: 0.1
  dropout: 0.0
  image_size: !!python/tuple
  - 32
  - 48
  n_cls: 7
  n_heads: 4
  n_layers: 1
  normalization: %s
  patch_size: 16
"""
PUBLIC_DECODERS = {
    "linear": "{name: linear}",
    "mask": "{name: mask_transformer, n_layers: 2, drop_path_rate: 0.0, dropout: 0.1}",
}


@pytest.fixture
def public(tmp_path):
    """Writes a folder as the public repository does; returns a function of the decoder's name."""

    def write(decoder: str, normalisation: str = "vit"):
        text = VARIANT % (PUBLIC_DECODERS[decoder], normalisation)
        (tmp_path / "variant.yml").write_text(text)
        content = {"model": public_tensors(decoder), "optimizer": {"state": {}}, "n_cls": 7}
        torch.save({**content, "epoch": 63}, tmp_path / "checkpoint.pth")
        return tmp_path

    return write


# The paper's arithmetic, from the tensors alone


def norm(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def block(x: torch.Tensor, tensors, name: str, heads: int) -> torch.Tensor:
    packed = linear(norm(x, tensors, f"{name}.norm1"), tensors, f"{name}.attn.qkv")
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, -1))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).flatten(2), tensors, f"{name}.attn.proj")
    hidden = linear(norm(x, tensors, f"{name}.norm2"), tensors, f"{name}.mlp.fc1")
    return x + linear(functional.gelu(hidden), tensors, f"{name}.mlp.fc2")


def reference(x: torch.Tensor, tensors: dict[str, torch.Tensor], decoder: str) -> torch.Tensor:
    rows, columns = PUBLIC_GRID
    patches = [
        x[:, :, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16].flatten(1)
        for r in range(rows)
        for c in range(columns)
    ]
    kernel = tensors["encoder.patch_embed.proj.weight"].flatten(1)
    y = torch.stack(patches, 1) @ kernel.T + tensors["encoder.patch_embed.proj.bias"]
    y = torch.cat([tensors["encoder.cls_token"].expand(len(x), -1, -1), y], 1)
    y = block(y + tensors["encoder.pos_embed"], tensors, "encoder.blocks.0", heads=4)
    y = norm(y, tensors, "encoder.norm")[:, 1:]
    if decoder == "linear":
        masks = linear(y, tensors, "decoder.head")
    else:
        classes = tensors["decoder.cls_emb"].expand(len(x), -1, -1)
        y = torch.cat([linear(y, tensors, "decoder.proj_dec"), classes], 1)
        for index in range(2):
            y = block(y, tensors, f"decoder.blocks.{index}", heads=PUBLIC_WIDTH // 64)
        y = norm(y, tensors, "decoder.decoder_norm")
        seen = y[:, :-PUBLIC_CLASSES] @ tensors["decoder.proj_patch"]
        classes = y[:, -PUBLIC_CLASSES:] @ tensors["decoder.proj_classes"]
        seen = seen / seen.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks = norm(seen @ classes.transpose(1, 2), tensors, "decoder.mask_norm")
    return masks.unflatten(1, PUBLIC_GRID).permute(0, 3, 1, 2)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_public_checkpoint_computes_the_papers_equations(public, decoder):
    folder = public(decoder)
    loaded = load_segmenter(folder)
    x = pixels(2, 3, 32, 48)
    with torch.no_grad():
        ours = loaded.segmenter(x)
    assert ours.shape == (2, PUBLIC_CLASSES, *PUBLIC_GRID)
    expected = reference(x, public_tensors(decoder), decoder)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert any("encoder.head" in note for note in loaded.notes)
    assert loaded.weights == str(folder / "checkpoint.pth")


def test_a_public_checkpoint_by_its_spec(public):
    folder = public("mask", "deit")
    model = load_model(f"segmenter:{folder}", input_size=(48, 32), num_classes=7)
    assert model.task == "segmentation"
    assert model.mean == (0.485, 0.456, 0.406)
    assert model.std == (0.229, 0.224, 0.225)
    assert model.labels is not None
    assert model.labels[:2] == ("class 0", "class 1")
    assert model.preprocessing == {
        "size": [48, 32],
        "resize": [48, 32],
        "crop": "squash",
        "interpolation": "bilinear",
        "least": 16,
    }
    assert "position embedding resampled for 48x32 pixels" in model.notes
    assert load_model(f"segmenter:{public('mask')}").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("distilled: false", "distilled: true", "distilled encoders"),
        ("name: linear", "name: deeplab", "'deeplab' is neither linear nor mask_transformer"),
        ("normalization: vit", "normalization: clip", "'clip' is none of vit, deit"),
        ("d_model: 128", "d_model: wide", "d_model is 'wide', not an integer"),
        ("  n_heads: 4\n", "", "n_heads is None"),
        ("- 48", "- 40", r"variant\.yml: an image of 32x40 pixels is not a whole number"),
        ("- 48", "- 8", r"32x8 pixels is smaller than a patch of 16"),
        ("n_cls: 7", "n_cls: 8", r"checkpoint\.pth holds weights for 7 classes .* has 8"),
        ("n_layers: 1", "n_layers: 2", r"(?s)missing \(12\).*encoder\.blocks\.1"),
        ("net_kwargs:", "net:", "has no net_kwargs"),
        ("amp: false", "amp: !!python/object/apply:os.getcwd []", "not readable YAML of plain"),
        ("amp: false", "amp: [", "not readable YAML"),
    ],
)
def test_public_folders_that_do_not_load(public, old, new, message):
    folder = public("linear")
    text = (folder / "variant.yml").read_text()
    assert old in text
    (folder / "variant.yml").write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=message):
        load_segmenter(folder)


# timm's encoders


def timm_vit(**options):
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        **{
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "num_classes": 9,
            **options,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("side", [32, 40])
def test_the_encoder_has_timms_features(side):
    """Also where timm resamples the position embedding to another grid, and not square."""
    theirs = timm_vit(img_size=side)
    segmenter = Segmenter(small()).eval()
    notes = load_encoder(segmenter, Weights(theirs.state_dict(), "vit.pth"))
    assert notes == (
        "the classifier's head is left out",
        f"position embedding resampled from {side // 8}x{side // 8} to 4x6 patches",
    )
    theirs.set_input_size(img_size=(32, 48))
    x = pixels(2, 3, 32, 48)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        torch.testing.assert_close(segmenter.encoder(x), expected, rtol=1e-4, atol=1e-4)


def test_encoder_weights_that_do_not_fit():
    odd = timm_vit(img_size=32).state_dict() | {"pos_embed": torch.zeros(1, 12, 24)}
    with pytest.raises(ModelError, match="of 12 tokens is not a class token and a square"):
        load_encoder(Segmenter(small()), Weights(odd, "vit.pth"))
    deep = timm_vit(img_size=32, depth=3).state_dict()
    with pytest.raises(ModelError, match=r"(?s)vit\.pth does not fit.*unexpected.*blocks\.2"):
        load_encoder(Segmenter(small()), Weights(deep, "vit.pth"))


def test_a_fresh_segmenter_on_a_timm_encoder(tmp_path):
    pytest.importorskip("timm")
    spec = "segmenter:vit_tiny_patch16_224+mask"
    model = load_model(spec, num_classes=4, input_size=(32, 64), seed=1)
    config = model.module.segmenter.config
    assert config == SegmenterConfig((32, 64), 4, decoder="mask")
    assert model.weights == "random, seed 1"
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    found = model.scores(images)
    assert (found.dtype, found.shape) == (torch.uint8, (2, 32, 64))

    # Weights of the whole are told from weights of the encoder alone.
    whole = tmp_path / "whole.safetensors"
    save_file(model.module.segmenter.state_dict(), whole)
    again = load_model(spec, weights=whole, num_classes=4, input_size=(32, 64), seed=2)
    assert torch.equal(again.scores(images), found)
    half = tmp_path / "encoder.safetensors"
    save_file(model.module.segmenter.encoder.state_dict(), half)
    mixed = load_model(spec, weights=half, num_classes=3, input_size=(32, 64))
    assert mixed.notes == ("the weights of the decoder are random",)
    assert torch.equal(
        mixed.module.segmenter.encoder.pos_embed, model.module.segmenter.encoder.pos_embed
    )


@pytest.mark.parametrize(
    ("spec", "classes", "message"),
    [
        ("segmenter:vit_tiny_patch16_224", 5, "neither a folder nor TIMM_NAME"),
        ("segmenter:vit_tiny_patch16_224+crf", 5, "neither a folder"),
        ("segmenter:vit_tiny_patch16_224+mask", None, "give its number of classes"),
        ("segmenter:vit_tiny_patch16_224+mask", 1, "2 to 255 classes, not 1"),
        ("segmenter:vit_tinny_patch16_224+mask", 5, "close names: vit_tiny_patch16_224"),
        ("segmenter:resnet18+linear", 5, "cannot be made"),
        ("segmenter:deit_tiny_distilled_patch16_224+linear", 5, r"plain ViT.*dist_token"),
        ("segmenter:vit_tiny_patch16_224+", 5, "neither a folder"),
    ],
)
def test_fresh_segmenters_that_cannot_be_made(spec, classes, message):
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=message):
        load_model(spec, num_classes=classes)


def test_sizes_come_from_timm():
    pytest.importorskip("timm")
    config, meta = timm_sizes("vit_small_patch32_384", "linear", classes=3, drop_path=0.2)
    assert config == SegmenterConfig(
        (384, 384), 3, patch_size=32, width=384, heads=6, decoder_heads=6, drop_path=0.2
    )
    assert meta.mean == meta.std == (0.5, 0.5, 0.5)


# Our own folders


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_folder_keeps_everything(tmp_path, decoder):
    segmenter = random_segmenter(
        decoder=decoder, decoder_depth=1, normalise=False, drop_path=0.2, eps=1e-3, mlp_ratio=3
    )
    save_segmenter(tmp_path / "new" / "trained", segmenter, META)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    model = load_model(f"segmenter:{tmp_path}/new/trained")
    assert torch.equal(torch.rand(1), expected)
    again = model.module.segmenter
    assert again.config == segmenter.config
    assert not any(module.training for module in again.modules())
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert (model.labels, model.mean, model.std) == (META.labels, META.mean, META.std)
    assert model.palette == META.palette
    assert model.weights == str(tmp_path / "new/trained/model.safetensors")
    assert model.notes == ()
    content = json.loads((tmp_path / "new/trained/config.json").read_text())
    assert content["task"] == "segmentation"
    assert sorted(p.name for p in (tmp_path / "new/trained").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_norms_of_the_decoder_are_an_option():
    plain = random_segmenter(decoder="mask", normalise=False)
    normed = Segmenter(small(decoder="mask")).eval()
    normed.load_state_dict(plain.state_dict())
    x = pixels(1, 3, 32, 48)
    with torch.no_grad():
        # The last LayerNorm hides a common factor, but not that of each class.
        assert not torch.allclose(plain(x), normed(x), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 6}, "labels has 5 entries for 6 classes"),
        ({"classes": 6, "labels": None, "palette": None}, r"holds weights for 5 classes .* has 6"),
        ({"colour": 1}, r"unknown keys colour; known: \['image_size'"),
        ({"task": "detection"}, "not of a segmenter"),
        ({"width": "24"}, "width is '24', not of type int"),
        ({"heads": True}, "heads is True, not of type int"),
        ({"normalise": 1}, "normalise is 1, not of type bool"),
        ({"image_size": 32}, r"image_size is 32, not \[height, width\]"),
        ({"image_size": [32, 4]}, r"config\.json: an image of 32x4 pixels is smaller than a patch"),
        ({"image_size": [32, 42]}, "not a whole number of patches of 8"),
        ({"width": 25}, "does not divide into 2 heads"),
        ({"decoder": "mlp"}, "no decoder 'mlp'; it is one of linear, mask"),
        ({"drop_path": 1}, r"drop_path lies in 0\.\.1"),
        ({"decoder_depth": 0}, "no size below 1"),
        ({"depth": 0}, "no size below 1"),
        ({"patch_size": 0}, "no size below 1"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0\.5, 0\.5\], not three numbers"),
        ({"std": [0.5, 0, 0.5]}, "std .* is impossible"),
        ({"palette": [[0, 0, 256]] * 5}, r"palette has \[0, 0, 256\], not red, green and blue"),
        ({"labels": [1, 2, 3, 4, 5]}, "labels has entries that are not text"),
        ({"labels": "abcde"}, "labels has 'abcde' entries"),
        ({"depth": 3}, r"(?s)does not fit the model.*missing \(12\)"),
    ],
)
def test_configurations_that_are_refused(tmp_path, changes, message):
    save_segmenter(tmp_path, random_segmenter(decoder="mask"), META)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        load_model(f"segmenter:{tmp_path}")


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no segmenter: neither config\.json nor"):
        load_segmenter(tmp_path)
    save_segmenter(tmp_path, random_segmenter(), META)
    with pytest.raises(ModelError, match=r"has 5 classes, not 6"):
        load_model(f"segmenter:{tmp_path}", num_classes=6)
    with pytest.raises(ModelError, match="40x44 pixels is not a whole number"):
        load_model(f"segmenter:{tmp_path}", input_size=(40, 44))
    text = (tmp_path / "config.json").read_text()
    for content, message in (
        ("{", "not readable JSON"),
        ("[]", "holds a list"),
        (json.dumps({k: v for k, v in json.loads(text).items() if k != "mean"}), "lacks mean"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            load_segmenter(tmp_path)
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weight file .*model\.safetensors"):
        load_segmenter(tmp_path)


def test_nothing_is_saved_that_would_not_load(tmp_path):
    with pytest.raises(ModelError, match="palette has 4 entries for 5 classes"):
        save_segmenter(tmp_path / "x", random_segmenter(), replace(META, palette=((0, 0, 0),) * 4))
    assert not (tmp_path / "x").exists()


def test_another_size_resamples_the_positions_only():
    segmenter = random_segmenter().train()
    wide = at_size(segmenter, (16, 64))
    assert at_size(segmenter, (32, 48)) is segmenter
    assert wide.training
    assert wide.config.grid == (2, 8)
    grid = segmenter.encoder.pos_embed[:, 1:].detach().unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    scaled = functional.interpolate(grid, size=(2, 8), mode="bicubic", antialias=True)
    positions = wide.encoder.pos_embed.detach()
    torch.testing.assert_close(positions[:, 1:], scaled.flatten(2).transpose(1, 2))
    assert torch.equal(positions[:, :1], segmenter.encoder.pos_embed[:, :1])
    rest = wide.state_dict()
    for name, tensor in segmenter.state_dict().items():
        assert name == "encoder.pos_embed" or torch.equal(rest[name], tensor), name


def test_a_folder_is_trained_on_at_another_rate(tmp_path):
    save_segmenter(tmp_path, random_segmenter(drop_path=0.1), META)
    assert load(str(tmp_path)).segmenter.config.drop_path == 0.1
    again = load(str(tmp_path), drop_path=0.3, image_size=(32, 32), classes=5).segmenter
    assert [again.encoder.blocks[i].drop_path.rate for i in (0, 1)] == [0.0, 0.3]


# What is captured and trained


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_class_map_is_captured(decoder):
    segmenter = random_segmenter(decoder=decoder)
    captured = capture(ClassMap(segmenter), (1, 3, 32, 48), mean=META.mean, std=META.std)
    assert captured.output_names == ("classes",)
    x = pixels(1, 3, 32, 48)
    with torch.no_grad():
        logits = segmenter(x)
        full = functional.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
        (found,) = captured.module(x)
    assert found.shape == (1, 32, 48)
    assert torch.equal(found, full.argmax(1))
    assert len(found.unique()) > 1


def test_stochastic_depth_leaves_samples_out_in_training_only():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    assert drop.eval()(x) is x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        y = drop.train()(x)
    kept = y[:, 0, 0] != 0
    assert 0.72 < kept.float().mean() < 0.78
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / 0.75))
    assert not y[~kept].any()


def test_weights_on_disk_have_the_public_names(tmp_path):
    save_segmenter(tmp_path, random_segmenter(decoder="mask", depth=1), META)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == {n for n in public_shapes("mask") if not n.startswith("encoder.head")}


# From the command line


@pytest.fixture
def photos(tmp_path):
    """A folder of images and masks; a mask would be one colour more to calibrate on."""
    generator = torch.Generator().manual_seed(6)
    for kind, colours in (("images", 256), ("annotations", 5)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for index in range(2):
            size = (40, 60, 3) if kind == "images" else (40, 60)
            values = torch.randint(0, colours, size, dtype=torch.uint8, generator=generator)
            Image.fromarray(values.numpy()).save(tmp_path / "data" / kind / f"{index}.png")
    return tmp_path / "data"


def test_masks_do_not_calibrate(photos):
    found = calibration_images(photos, None, 0)
    assert sorted(path.relative_to(photos).as_posix() for path in found) == [
        "images/0.png",
        "images/1.png",
    ]


@pytest.mark.parametrize("ends_in", ["classes", "logits"])
def test_quantize_a_folder(tmp_path, photos, ends_in):
    save_segmenter(tmp_path / "trained", random_segmenter(), META)
    command = ["quantize", f"segmenter:{tmp_path / 'trained'}", "--calib", str(photos)]
    command += ["--input-size", "16x48", "--json", str(tmp_path / "q.json")]
    command += ["--logits"] if ends_in == "logits" else []
    assert main([*command, "-o", str(tmp_path / "m.iqv")]) == 0
    graph = serialize.load(tmp_path / "m.iqv")
    assert graph.meta["task"] == "segmentation"
    assert graph.meta["labels"] == list("abcde")
    assert graph.meta["palette"] == [[i, 0, 255] for i in range(5)]
    assert graph.meta["preprocessing"]["size"] == [16, 48]
    assert list(graph.outputs) == [ends_in]
    made = graph[graph.outputs[ends_in]].type
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["sqnr_db"] > 15
    if ends_in == "classes":
        assert (made.dtype, made.shape, made.lo, made.hi) == ("uint8", (1, 16, 48), 0, 4)
        assert found["agreement"] > 90
    else:
        assert made.shape == (1, 5, 16, 48)
        assert "agreement" not in found


@pytest.mark.parametrize("text", ["0", "32x", "x32", "32x48x3", "-32", "3.5", "32X48", "999999"])
def test_sizes_that_are_none(text, tmp_path, photos, capsys):
    command = ["quantize", "segmenter:vit_tiny_patch16_224+mask", "--calib", str(photos)]
    assert main([*command, f"--input-size={text}", "-o", str(tmp_path / "m.iqv")]) == 2
    assert "is no size such as 224, or 352x480 (height x width)" in capsys.readouterr().err


def test_sizes_of_a_side_and_of_both():
    assert parse_size("224") == (224, 224)
    assert parse_size("352x480") == (352, 480)


def test_models_of_other_sources_take_height_and_width():
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    for spec in ("timm:test_vit", "transformers:vit-tiny-patch16-224"):
        model = load_model(spec, input_size=(32, 64))
        assert model.input_shape == (1, 3, 32, 64)
        images = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
        assert model.scores(images).shape == (1, 1000)
    with pytest.raises(ModelError, match="vit_b_32 takes square images only, not 32x64"):
        load_model("torchvision:vit_b_32", input_size=(32, 64))
    with pytest.raises(ModelError, match=r"cannot be \(0, 64\)"):
        load_model("timm:test_vit", input_size=(0, 64))


def test_configurations_that_no_computer_can_hold(tmp_path):
    save_segmenter(tmp_path, random_segmenter(), META)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "width": 3 * 2**40, "heads": 3}))
    with pytest.raises(ModelError, match="cannot be made"):
        load_segmenter(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ModelError, match="is not readable JSON"):
        load_segmenter(tmp_path)
