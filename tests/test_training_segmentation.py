"""The segmentation task: augmentation, loss, where a model begins, and the command as a whole."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional

import iqvit
from iqvit.cli import main
from iqvit.errors import DataError, IqvitError, ModelError
from iqvit.eval.segmentation_data import IGNORE, read_folder
from iqvit.models.segmenter import Segmenter, SegmenterConfig
from iqvit.models.segmenter_folder import SegmenterMeta, load_segmenter, save_segmenter
from iqvit.processes import World
from iqvit.training.augment import Augment, span
from iqvit.training.curves import write_curves
from iqvit.training.images import Cached, normalise
from iqvit.training.segmentation import (
    Options,
    SegmentationTask,
    class_counts,
    cross_entropy,
    sqrt_inverse,
)
from iqvit.training.segmentation_model import continued, fresh

HALF = (0.5, 0.5, 0.5)
SMALL = SegmenterConfig(
    (32, 48), 3, patch_size=8, width=16, depth=1, heads=2, decoder="mask", decoder_depth=1,
    decoder_heads=2,
)  # fmt: skip
COLOURS = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=torch.uint8)


def write_drawings(root, split, count, size=(32, 48)):
    """Images of three coloured bands at random heights; the mask says which, with a void row."""
    generator = torch.Generator().manual_seed(len(split))
    for kind in ("images", "annotations"):
        (root / split / kind).mkdir(parents=True)
    for index in range(count):
        cuts = sorted(torch.randint(4, size[0] - 4, (2,), generator=generator).tolist())
        rows = torch.zeros(size[0], dtype=torch.long)
        rows[cuts[0] :] = 1
        rows[cuts[1] :] = 2
        mask = rows[:, None].expand(*size).clone()
        image = COLOURS[mask]
        mask[0] = IGNORE
        Image.fromarray(image.numpy()).save(root / split / "images" / f"{index}.png")
        path = root / split / "annotations" / f"{index}.png"
        Image.fromarray(mask.to(torch.uint8).numpy()).save(path)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawings")
    write_drawings(root, "train", 8)
    write_drawings(root, "val", 3)
    (root / "classes.txt").write_text("red 220 30 30\ngreen 30 220 30\nblue 30 30 220\n")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of a small Segmenter, random."""
    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    save_segmenter(folder, Segmenter(SMALL), SegmenterMeta(None, HALF, HALF))
    return folder


def task_of(drawings, start, **options):
    sets = (read_folder(drawings, split) for split in ("train", "val"))
    size = start.model.config.image_size
    return SegmentationTask(start, *sets, Options(**{"size": size, "crop": size, **options}))


# Augmentation


def checked_pair(height=40, width=60):
    """An image whose red channel is 50 times the class of its mask, in blocks of 10 pixels."""
    blocks = torch.arange(height // 10)[:, None] + torch.arange(width // 10)
    mask = (blocks % 4).repeat_interleave(10, 0).repeat_interleave(10, 1).to(torch.uint8)
    return (mask * 50).expand(3, -1, -1).contiguous(), mask


@pytest.mark.parametrize("scales", [(0.5, 0.5), (1.0, 1.0), (0.5, 2.0), (2.0, 2.0)])
@pytest.mark.parametrize("crop", [(40, 60), (24, 32), (64, 80)])
def test_image_and_mask_stay_together(scales, crop):
    augment = Augment((40, 60), crop, (7, 7, 7), scales)
    augment.colours = torch.nn.Identity()
    image, mask = checked_pair()
    for seed in range(10):
        torch.manual_seed(seed)
        seen, ids = augment(image, mask)
        assert (seen.shape, ids.shape) == ((3, *crop), crop)
        assert (seen.dtype, ids.dtype) == (torch.uint8, torch.uint8)
        padded = ids == IGNORE
        assert bool((seen[:, padded] == 7).all())
        assert set(ids[~padded].tolist()) <= {0, 1, 2, 3}
        # All but the borders of blocks, where bilinear blends and nearest does not.
        apart = (seen[0].int() - 50 * ids.int()).abs()[~padded]
        assert float((apart <= 15).float().mean()) > 0.75


def test_a_scale_of_one_shows_everything_as_it_is_or_mirrored():
    augment = Augment((40, 60), (40, 60), (0, 0, 0), (1.0, 1.0))
    augment.colours = torch.nn.Identity()
    image, mask = checked_pair()
    mirrored = []
    for seed in range(12):
        torch.manual_seed(seed)
        seen, ids = augment(image, mask)
        flipped = not torch.equal(ids, mask)
        mirrored.append(flipped)
        assert torch.equal(ids, mask.flip(-1) if flipped else mask)
        assert torch.equal(seen, image.flip(-1) if flipped else image)
    assert {True, False} == set(mirrored)


def test_colours_change_the_image_alone():
    augment = Augment((40, 60), (40, 60), (0, 0, 0), (1.0, 1.0))
    image, mask = checked_pair()
    torch.manual_seed(1)
    seen, ids = augment(image, mask)
    assert torch.equal(ids, mask) or torch.equal(ids, mask.flip(-1))
    assert not torch.equal(seen, image)
    assert not torch.equal(seen, image.flip(-1))


@pytest.mark.parametrize(("length", "scaled", "crop"), [(40, 20.0, 32), (40, 80, 32), (7, 7.4, 7)])
def test_a_span_lies_inside_both(length, scaled, crop):
    for seed in range(20):
        torch.manual_seed(seed)
        found = span(length, scaled, crop)
        assert 0 <= found.start <= found.start + found.taken <= length
        assert 0 <= found.place <= found.place + found.made <= crop
        assert found.made / found.taken == pytest.approx(scaled / length, rel=0.07)
        assert found.made == crop or found.taken == length


# Loss


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_over_labelled_pixels_at_full_resolution(weighted):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 6)
    masks = torch.randint(0, 3, (2, 16, 24))
    masks[:, :5] = IGNORE
    weight = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    full = functional.interpolate(logits, (16, 24), mode="bilinear", align_corners=False)
    wanted = functional.cross_entropy(full, masks, weight=weight, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, masks, weight), wanted)


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_a_crop_without_labels_costs_nothing(weight):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 8, 8), IGNORE), weight)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_rare_classes_weigh_more():
    weight = sqrt_inverse(torch.tensor([100.0, 25.0, 0.0, 4.0], dtype=torch.float64))
    assert weight.dtype == torch.float32
    assert (weight / weight[0]).tolist() == pytest.approx([1, 2, 0, 5])
    assert weight.mean().item() == pytest.approx(1)


def test_normalise():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalise(images, (0.5, 0.1, 0.2), (0.5, 0.2, 0.4))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 0.5, 2.0]))


# The task


def test_decoded_images_are_kept_up_to_a_limit(drawings):
    data = read_folder(drawings, "train")
    cached = Cached(lambda i: (data.image(i), data.mask(i)), most=3 * 4 * 32 * 48)
    first = [cached(index) for index in range(5)]
    again = [cached(index) for index in range(5)]
    assert [a[0] is b[0] for a, b in zip(first, again, strict=True)] == [True] * 3 + [False] * 2
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))


def test_classes_are_counted_by_all_processes_together(drawings):
    data = read_folder(drawings, "train")
    read = Cached(lambda i: (data.image(i), data.mask(i)), 0)
    parts = [class_counts(read, World(rank, 2).share(len(data)), 3) for rank in range(2)]
    pixels = torch.cat([data.mask(i).flatten() for i in range(len(data))])
    assert sum(parts).tolist() == [int((pixels == c).sum()) for c in range(3)]


def test_validation_is_the_score_of_the_saved_model(drawings, trained, tmp_path, capsys):
    start = continued(trained, size=(24, 24), classes=3)
    task = task_of(drawings, start, size=(32, 48), crop=(24, 24))
    found = task.validate(task.model.eval(), World())
    task.save(tmp_path / "kept", task.model)
    assert load_segmenter(tmp_path / "kept").segmenter.config.image_size == (32, 48)
    arguments = ["eval", "segmentation", f"segmenter:{tmp_path / 'kept'}", "--data", str(drawings)]
    assert main([*arguments, "--json", str(tmp_path / "m.json")]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["mIoU"] == pytest.approx(found["mIoU"])
    assert metrics["pixel_accuracy"] == pytest.approx(found["pixel_accuracy"])


def test_the_encoder_may_learn_slower(drawings, trained):
    task = task_of(drawings, continued(trained, size=(32, 48), classes=3), encoder_lr_scale=0.1)
    scales = {n: task.learning_rate_scale(n) for n, _ in task.model.named_parameters()}
    assert scales["encoder.blocks.0.attn.qkv.weight"] == 0.1
    assert scales["decoder.cls_emb"] == 1.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop": (40, 48)}, "crops of 40x48 are larger than the input of 32x48"),
        ({"class_weights": "log"}, "'log' are none of none, sqrt-inverse"),
        ({"encoder_lr_scale": 0.0}, "cannot be 0.0 times"),
    ],
)
def test_impossible_options(change, told):
    with pytest.raises(IqvitError, match=told):
        Options(**{"size": (32, 48), "crop": (32, 48), **change})


def test_training_and_validation_must_have_the_same_classes(drawings, trained):
    train, val = (read_folder(drawings, split) for split in ("train", "val"))
    start = continued(trained, size=(32, 48), classes=3)
    with pytest.raises(DataError, match="different classes"):
        SegmentationTask(start, train, replace(val, classes=("a",)), Options((32, 48), (32, 48)))


# Where a model begins


def test_a_trained_folder_is_taken_whole_where_it_fits(trained):
    start = continued(trained, size=(32, 48), classes=3, drop_path=0.2)
    assert (start.model.config.drop_path, start.notes) == (0.2, ())
    theirs = load_segmenter(trained).segmenter.state_dict()
    assert all(torch.equal(t, theirs[k]) for k, t in start.model.state_dict().items())


def test_a_trained_folder_for_other_classes_keeps_its_encoder(trained):
    start = continued(trained, size=(40, 48), classes=5, seed=1)
    theirs = load_segmenter(trained, (40, 48)).segmenter.state_dict()
    new = [k for k, t in start.model.state_dict().items() if not t.equal(theirs[k])]
    assert sorted(new) == ["decoder.cls_emb", "decoder.mask_norm.bias", "decoder.mask_norm.weight"]
    assert start.model.state_dict()["decoder.cls_emb"].shape[1] == 5
    assert "made anew: decoder.cls_emb" in start.notes[-1]
    again = continued(trained, size=(40, 48), classes=5, seed=1).model.decoder.cls_emb
    assert torch.equal(again, start.model.decoder.cls_emb)


def test_specs_and_rates_that_are_none(trained):
    for spec in ("vit_tiny_patch16_224+mask", f"segmenter:{trained}"):
        with pytest.raises(ModelError, match="a fresh model is segmenter:TIMM_NAME"):
            fresh(spec, weights=None, size=(32, 48), classes=3)
    with pytest.raises(ModelError, match=r"--drop-path 1.0 is no rate"):
        continued(trained, size=(32, 48), classes=3, drop_path=1.0)


# The command


def train(drawings, trained, folder, *more):
    return main(
        [
            "train", "segmentation", "--data", str(drawings), "--from", str(trained),
            "--input-size", "32x48", "--crop", "32x32", "--batch", "2", "--lr", "0.02",
            "--encoder-lr-scale", "1", "--warmup", "1", "--drop-path", "0", "--threads", "1",
            "--validate-every", "7", "-o", str(folder), *more,
        ]
    )  # fmt: skip


def test_the_command_teaches_and_resumes(drawings, trained, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "out"
    options = ["--epochs", "15", "--class-weights", "sqrt-inverse", "--ema", "0.8"]
    assert train(drawings, trained, folder, *options, "--until", "8") == 0
    assert len(json.loads((folder / "history.json").read_text())) == 8
    assert train(drawings, trained, folder, *options, "--resume") == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert "images/s" in told.err
    history = json.loads((folder / "history.json").read_text())
    best = max(row["mIoU"] for row in history if "mIoU" in row)
    assert best > 50
    assert f"best_mIoU\t{best}" in told.out
    loaded = load_segmenter(folder)
    assert loaded.meta.labels == ("red", "green", "blue")
    assert loaded.meta.palette == ((220, 30, 30), (30, 220, 30), (30, 30, 220))
    assert loaded.segmenter.config.image_size == (32, 48)
    assert load_segmenter(folder / "last").segmenter.config == loaded.segmenter.config
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"

    assert train(drawings, trained, folder, *options) == 2
    assert "already holds checkpoint.pt and config.json" in capsys.readouterr().err
    assert train(drawings, trained, folder, "--epochs", "16", "--resume") == 2
    assert "epochs: 15 there, 16 here" in capsys.readouterr().err
    other = shutil.copytree(drawings, tmp_path / "other")
    for part in ("images", "annotations"):
        first = sorted((other / "train" / part).iterdir())[0]
        first.rename(first.with_stem("renamed"))
    assert train(other, trained, folder, *options, "--resume") == 2
    assert "names of the images" in capsys.readouterr().err
    assert train(drawings, trained, folder, *options, "--decoder", "linear", "--resume") == 2
    assert "model sizes" in capsys.readouterr().err
    assert train(drawings, trained, folder, *options, "--resume") == 0
    assert f"best_mIoU\t{best}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model", "segmenter:vit_tiny_patch16_224+mask"], "give one of --model"),
        (["--weights", "w.safetensors"], "--weights goes with --model"),
        (["--decoder", "conv"], "conv"),
        (["--dataset", "voc"], "none of folder, ade20k, cityscapes"),
        (["--dataset", "ade20k", "--class-file", "c.txt"], "--class-file is for"),
        (["--resume"], "nothing to resume"),
        (["--batch", "9"], "8 training samples do not fill a batch of 9"),
        (["--input-size", "33x48"], "33x48"),
    ],
)
def test_mistakes_are_told_in_one_message(drawings, trained, tmp_path, capsys, more, told):
    assert train(drawings, trained, tmp_path / "out", "--epochs", "1", *more) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def train_integers(drawings, trained, folder, *more):
    return main(
        [
            "train", "segmentation", "--data", str(drawings), "--from", str(trained),
            "--input-size", "32x48", "--through-integers", "--calib", str(drawings / "train"),
            "--images", "4", "--batch", "2", "--lr", "0.005", "--encoder-lr-scale", "1",
            "--warmup", "1", "--threads", "1", "-o", str(folder), *more,
        ]
    )  # fmt: skip


def test_the_command_teaches_through_integers_and_resumes(drawings, trained, tmp_path, capsys):
    folder, whole = tmp_path / "out", tmp_path / "whole"
    options = ["--epochs", "4", "--steps", "learned", "--ranges", "moving"]
    assert train_integers(drawings, trained, folder, *options, "--until", "2") == 0
    capsys.readouterr()
    assert train_integers(drawings, trained, folder, *options, "--resume") == 0
    told = capsys.readouterr()
    assert f"model\t{folder / 'model.iqv'}" in told.out
    history = json.loads((folder / "history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]
    best = max(row["mIoU"] for row in history)
    # What the run scored is what the program gives to those who only have the file.
    program = str(folder / "model.iqv")
    metrics = tmp_path / "metrics.json"
    command = ["eval", "segmentation", "--data", str(drawings), program, "--json", str(metrics)]
    assert main(command) == 0
    assert json.loads(metrics.read_text())["mIoU"] == best
    graph = iqvit.load(folder / "model.iqv")
    assert graph.meta["trained"] == {"steps": "learned", "ranges": "moving", "momentum": 0.95}
    assert graph.meta["labels"] == ["red", "green", "blue"]
    assert graph.meta["palette"] == [[220, 30, 30], [30, 220, 30], [30, 30, 220]]
    capsys.readouterr()

    assert train_integers(drawings, trained, whole, *options) == 0
    assert (
        iqvit.load(whole / "last" / "model.iqv").hash
        == iqvit.load(folder / "last" / "model.iqv").hash
    )
    assert train_integers(drawings, trained, folder, "--epochs", "4", "--resume") == 2
    assert "through integers" in capsys.readouterr().err
    assert train_integers(drawings, trained, folder, *options) == 2
    assert "model.iqv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--crop", "32x32"], "--crop is for training in float"),
        (["--drop-path", "0.1"], "--drop-path is for training in float"),
        (["--decoder", "mask"], "--decoder is for training in float"),
        (["--model", "segmenter:vit_tiny_patch16_224+mask"], "give one of --model"),
        (["--steps", "lsq"], "step sizes are followed or learned, not 'lsq'"),
        (["--ranges", "free"], "ranges are fixed or moving, not 'free'"),
        (["--recipe", "none.toml"], "none.toml"),
    ],
)
def test_mistakes_of_training_through_integers(drawings, trained, tmp_path, capsys, more, told):
    assert train_integers(drawings, trained, tmp_path / "out", "--epochs", "1", *more) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--calib", "images/"], "--calib goes with --through-integers"),
        (["--through-integers", "--crop", "32x48"], "--crop is for training in float"),
        (["--through-integers"], "give --from FOLDER, and --calib DIR"),
    ],
)
def test_options_that_do_not_fit_together(drawings, trained, tmp_path, capsys, options, told):
    command = ["train", "segmentation", "--data", str(drawings), "--from", str(trained)]
    assert main([*command, "-o", str(tmp_path / "out"), *options]) == 2
    assert told in capsys.readouterr().err


def test_a_program_for_other_classes_is_refused(trained, tmp_path, capsys):
    write_drawings(tmp_path, "train", 4)
    write_drawings(tmp_path, "val", 1)
    (tmp_path / "classes.txt").write_text("a 0 0 0\nb 0 0 1\nc 0 0 2\nd 0 0 3\n")
    assert train_integers(tmp_path, trained, tmp_path / "out", "--epochs", "1") == 2
    assert "the segmenter knows 3 classes, the data 4" in capsys.readouterr().err


def test_no_curves_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    assert not write_curves(tmp_path / "c.png", [{"epoch": 1, "loss": 1.0, "lr": 1.0}], "mIoU")
    assert not (tmp_path / "c.png").exists()


def test_another_decoder_on_a_trained_encoder(trained):
    start = continued(trained, size=(32, 48), classes=3, decoder="linear")
    kept = load_segmenter(trained, (32, 48)).segmenter.encoder.state_dict()
    assert all(
        torch.equal(value, kept[name]) for name, value in start.model.encoder.state_dict().items()
    )
    assert start.model.config.decoder == "linear"
    assert "made anew: decoder.head.bias" in start.notes[-1]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_mask_with_an_unknown_class_is_named(drawings, trained, tmp_path, capsys, workers):
    other = shutil.copytree(drawings, tmp_path / "other")
    mask = sorted((other / "train" / "annotations").iterdir())[0]
    with Image.open(mask) as image:
        Image.new("L", image.size, 77).save(mask)
    more = ("--epochs", "1", "--workers", workers)
    assert train(other, trained, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert mask.name in error
    assert "77" in error
    assert "Traceback" not in error
