"""Training both heads: masks and boxes under augmentation, the task, its start, the command."""

import json

import pytest
import torch
from torchvision.ops import box_convert

from iqvit.cli import main
from iqvit.errors import DataError, IqvitError, ModelError
from iqvit.eval.multitask_data import LabelledSet, read_multitask, require_both
from iqvit.models.multitask.folder import load_multitask
from iqvit.models.rtdetr.config import PyramidConfig, RTDetrConfig
from iqvit.models.rtdetr.folder import DetectorCard, save_detector
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.segmenter import Segmenter, SegmenterConfig
from iqvit.models.segmenter_folder import SegmenterMeta, save_segmenter
from iqvit.processes import World
from iqvit.training.augment import IGNORE, Augment
from iqvit.training.joint_augment import JointAugment, JointAugmentation
from iqvit.training.multitask import MultitaskOptions, MultitaskTask
from iqvit.training.multitask_model import continued_multitask, fresh_multitask

SIZE, CROP = (64, 96), (32, 64)
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def sets(masks_and_boxes):
    return tuple(
        require_both(read_multitask(masks_and_boxes, split), masks_and_boxes)
        for split in ("train", "val")
    )


def task_of(sets, folder, **options):
    chosen = {"size": SIZE, "crop": CROP, **options}
    start = continued_multitask(folder, classes=3, box_classes=2, size=chosen["crop"])
    return MultitaskTask(start, *sets, MultitaskOptions(**chosen))


# Augmentation


@pytest.mark.parametrize(("frame", "crop"), [((64, 96), (64, 96)), ((64, 96), (40, 48))])
def test_image_mask_and_boxes_stay_together(frame, crop):
    augment = JointAugment(frame, crop, (0, 0, 0), JointAugmentation())
    image, mask = torch.zeros(3, 80, 120, dtype=torch.uint8), torch.zeros(80, 120).byte()
    image[0, 20:60, 30:50] = 255
    mask[20:60, 30:50] = 4
    boxes, areas = torch.tensor([[30.0, 20.0, 50.0, 60.0]]), torch.tensor([800.0])
    kept, cut = 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        seen, ids, labels, found = augment(image, mask, boxes, areas, torch.tensor([7]))
        assert (seen.shape, ids.shape, labels.tolist() in ([7], [])) == ((3, *crop), crop, True)
        red = seen[0] > seen[1].int() + 20
        inside = ids != IGNORE
        assert float((red == (ids == 4))[inside].float().mean()) > 0.95
        if len(labels) == 0:
            cut += 1
            continue
        kept += 1
        rows, columns = (ids == 4).nonzero(as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        corners = box_convert(found[0], "cxcywh", "xyxy") * torch.tensor([*crop[::-1]] * 2)
        assert float((corners - torch.tensor(expected)).abs().max()) <= 1.5
    assert kept >= 15
    assert cut > 0 or crop == frame


def test_the_crop_is_that_of_masks_alone():
    image = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
    mask = torch.randint(0, 3, (80, 120), dtype=torch.uint8)
    alone = Augment(SIZE, CROP, (1, 2, 3))
    joint = JointAugment(SIZE, CROP, (1, 2, 3), JointAugmentation())
    for seed in range(5):
        torch.manual_seed(seed)
        expected = alone(image, mask)
        torch.manual_seed(seed)
        found = joint(image, mask, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert found[3].shape == (0, 4)


@pytest.mark.parametrize(("least", "kept"), [(0, 2), (100, 2), (101, 1), (401, 0)])
def test_small_objects_are_dropped_by_their_own_area(least, kept):
    chosen = JointAugmentation(scales=(0.5, 0.5), least_area=least)
    augment = JointAugment((80, 120), (40, 60), (0, 0, 0), chosen)
    image, mask = torch.zeros(3, 80, 120, dtype=torch.uint8), torch.zeros(80, 120).byte()
    boxes = torch.tensor([[10.0, 10, 50, 50], [60, 10, 100, 50]])
    areas = torch.tensor([1600.0, 400.0])  # of 1600 pixels of the box
    _, _, labels, _ = augment(image, mask, boxes, areas, torch.tensor([0, 1]))
    assert len(labels) == kept


def test_what_is_hardly_seen_is_dropped():
    augment = JointAugment((80, 120), (80, 120), (0, 0, 0), JointAugmentation((1.0, 1.0)))
    rows, columns = augment.images.draw(torch.zeros(3, 80, 120))
    boxes = torch.tensor([[-30.0, 0, 10, 20], [-10, 0, 10, 20], [5, 5, 5.5, 20], [0, 0, 120, 80]])
    corners, kept = augment._visible(boxes, torch.full((4,), 1e6), rows, columns)
    assert kept.tolist() == [False, True, False, True]
    assert corners.tolist() == [[0, 0, 10, 20], [0, 0, 120, 80]]


# Where training begins


def test_a_segmenter_gives_encoder_and_decoder(tmp_path):
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2, "decoder": "mask"}
    segmenter = Segmenter(SegmenterConfig((48, 64), 3, **sizes, decoder_heads=2))
    save_segmenter(tmp_path, segmenter, SegmenterMeta(None, HALF, HALF))
    start = continued_multitask(tmp_path, classes=3, box_classes=2, size=(96, 128), drop_path=0.1)
    config = start.model.config
    assert (config.decoder, config.decoder_heads, config.image_size) == ("mask", 2, (96, 128))
    assert (config.backbone.width, config.backbone.drop_path) == (32, 0.1)
    ours = start.model.state_dict()
    for name, tensor in segmenter.state_dict().items():
        part = name.replace("encoder.", "detector.backbone.vit.").replace("decoder.", "segm.", 1)
        part = part.replace("segm.", "segmentation.") if name.startswith("decoder") else part
        if "pos_embed" not in name:
            assert torch.equal(ours[part], tensor)
    assert any("made anew: detector.backbone.up" in note for note in start.notes)
    other = continued_multitask(tmp_path, classes=5, box_classes=2, size=(96, 128))
    assert torch.equal(
        other.model.vit.blocks[0].attn.qkv.weight, segmenter.encoder.blocks[0].attn.qkv.weight
    )


def test_a_detector_is_taken_whole(tmp_path):
    torch.manual_seed(0)
    config = RTDetrConfig(
        SIZE, 2, PyramidConfig(16, 1, 2), width=16, heads=2, encoder_ffn=16, rep_blocks=1,
        queries=12, decoder_layers=1, decoder_ffn=16, points=2,
    )  # fmt: skip
    save_detector(tmp_path, RTDetr(config), DetectorCard(("a", "b"), HALF, HALF))
    start = continued_multitask(tmp_path, classes=3, box_classes=2)
    assert start.model.config.detector == config
    (note,) = start.notes
    assert note == "made anew: segmentation.head.bias, segmentation.head.weight"
    changed = continued_multitask(tmp_path, classes=3, box_classes=4, queries=7)
    assert (changed.model.config.detector.classes, changed.model.config.detector.queries) == (4, 7)


def test_other_beginnings_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is not the config\.json of a trained"):
        continued_multitask(tmp_path, classes=3, box_classes=2)
    (tmp_path / "config.json").write_text('{"task": "depth"}')
    with pytest.raises(ModelError, match="is of a model for depth; it is one of multitask, seg"):
        continued_multitask(tmp_path, classes=3, box_classes=2)
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 1, "heads": 2, "patch_size": 8}
    save_segmenter(
        tmp_path, Segmenter(SegmenterConfig(SIZE, 3, **sizes)), SegmenterMeta(None, HALF, HALF)
    )
    with pytest.raises(ModelError, match="has patches of 8 pixels"):
        continued_multitask(tmp_path, classes=3, box_classes=2)


def test_a_fresh_model_is_drawn_from_the_seed():
    first, again, other = (
        fresh_multitask(
            "multitask:vit_tiny", weights=None, classes=3, box_classes=2, size=(64, 64),
            queries=10, seed=seed,
        )
        for seed in (1, 1, 2)
    )  # fmt: skip
    weight = first.model.segmentation.head.weight
    assert torch.equal(weight, again.model.segmentation.head.weight)
    assert not torch.equal(weight, other.model.segmentation.head.weight)
    assert (first.model.config.classes, first.model.config.detector.classes) == (3, 2)


# The task


@pytest.mark.parametrize("denoising", [0, 10])
def test_everything_that_learns_gets_a_gradient(sets, small_multitask, denoising):
    """Also where an image, or every image of a batch, has no object: several processes need it."""
    task = task_of(sets, small_multitask, denoising=denoising, crop=SIZE)
    for indices in ((1, 0, 2), (0, 0)):
        torch.manual_seed(0)
        task.model.train().zero_grad()
        batch = task.collate([task.sample(i) for i in indices])
        loss = task.loss(task.model, batch)
        assert loss.shape == ()
        loss.backward()
        assert [n for n, p in task.model.named_parameters() if p.grad is None] == []


def test_the_loss_is_the_sum_of_both(sets, small_multitask):
    tasks = [task_of(sets, small_multitask, box_weight=w, denoising=0) for w in (0.5, 1.0)]
    losses = []
    for task in tasks:
        torch.manual_seed(0)
        batch = task.collate([task.sample(i) for i in (1, 2)])
        images, masks, objects = batch
        torch.manual_seed(1)
        losses.append(task.loss(task.model.eval(), batch))
        pixels = (images.float() / 255 - torch.tensor(task.start.mean).view(3, 1, 1)) / (
            torch.tensor(task.start.std).view(3, 1, 1)
        )
        class_map, boxes = task.model(pixels, masks.long(), objects)
        torch.testing.assert_close(losses[-1], class_map + task.options.box_weight * boxes)
    assert losses[1].item() > losses[0].item()


def test_classes_are_weighed(sets, small_multitask):
    task = task_of(sets, small_multitask, class_weights="sqrt-inverse")
    task.prepare(World())
    assert task.weight is not None
    assert float(task.weight[1]) > float(task.weight[0])


def test_validation_is_the_score_of_the_saved_model(
    sets, small_multitask, masks_and_boxes, tmp_path, capsys
):
    task = task_of(sets, small_multitask)
    scores = task.validate(task.model.eval(), World())
    assert scores["score"] == (scores["mIoU"] + scores["mAP"]) / 2
    task.save(tmp_path / "saved", task.model)
    found = tmp_path / "found.json"
    command = ["eval", "multitask", f"multitask:{tmp_path / 'saved'}"]
    assert main([*command, "--data", str(masks_and_boxes), "--json", str(found)]) == 0
    capsys.readouterr()
    written = json.loads(found.read_text())
    for name in ("mIoU", "mAP", "AP50"):
        assert written[name] == pytest.approx(scores[name], abs=1e-9)
    model, card, _ = load_multitask(tmp_path / "saved")
    assert model.config.image_size == SIZE
    assert (card.labels, card.box_labels) == (("ground", "red", "green"), ("red", "green"))


def test_what_does_not_fit_is_refused(sets, small_multitask):
    train, val = sets
    masks = LabelledSet(val.masks, train.boxes, train.pairs)
    start = continued_multitask(small_multitask, classes=3, box_classes=2)
    other = type(val.boxes)(val.boxes.annotations, val.boxes.items, ("red", "blue"), (1, 2))
    with pytest.raises(DataError, match="different classes"):
        MultitaskTask(
            start, masks, LabelledSet(val.masks, other, val.pairs), MultitaskOptions(SIZE, SIZE)
        )
    with pytest.raises(IqvitError, match="weight of the detection loss cannot be -1"):
        MultitaskOptions(SIZE, SIZE, box_weight=-1)
    with pytest.raises(IqvitError, match="crops of 96x96 are larger than the input of 64x96"):
        MultitaskOptions(SIZE, (96, 96))


# The command


def test_train_resume_and_use(masks_and_boxes, small_multitask, tmp_path, capsys):
    command = [
        *("train", "multitask", "--data", str(masks_and_boxes), "--from", str(small_multitask)),
        *("--input-size", "64x96", "--crop", "32x64", "--epochs", "2", "--batch", "2"),
        *("--denoising", "6", "--scales", "0.8", "1.5"),
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*command, "-o", str(whole)]) == 0
    assert main([*command, "-o", str(parts), "--until", "1"]) == 0
    assert main([*command, "-o", str(parts), "--resume"]) == 0
    assert f"multitask:{parts}" in capsys.readouterr().out
    for name in ("model.safetensors", "last/model.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    histories = [json.loads((out / "history.json").read_text()) for out in (whole, parts)]
    timed = {"seconds", "samples_per_s", "validation_seconds"}
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in h] for h in histories]
    assert rows[0] == rows[1]
    assert {"score", "mIoU", "mAP"} < rows[0][0].keys()
    assert main([*command, "-o", str(parts), "--resume", "--box-weight", "2"]) == 2
    assert "weight of the detection loss: 0.1 there, 2.0 here" in capsys.readouterr().err


def test_class_maps_alone_are_learnt_first(masks_and_boxes, small_multitask, tmp_path):
    out = tmp_path / "maps"
    command = ["train", "multitask", "--data", str(masks_and_boxes), "--from", str(small_multitask)]
    options = ["--input-size", "64x96", "--epochs", "1", "--batch", "2", "--box-weight", "0"]
    assert main([*command, *options, "--ema", "0", "--warmup", "0", "-o", str(out)]) == 0
    before, after = (load_multitask(f)[0].state_dict() for f in (small_multitask, out))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    learnt = ("detector.backbone.vit.", "segmentation.")
    assert {name for name in after if name.startswith(learnt)} >= changed
    assert any(name.startswith(learnt[0]) for name in changed)
    assert any(name.startswith(learnt[1]) for name in changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "multitask:vit_huge"], "vit_huge"),
        (["--model", "multitask:vit_tiny", "--from", "x"], "give one of --model SPEC"),
        (["--from", "{}", "--weights", "x.pth"], "--weights goes with --model"),
        (["--from", "{}", "--input-size", "65x96"], "65"),
        (["--from", "{}", "--input-size", "64x96", "--class-weights", "much"], "'much'"),
        (["--from", "{}", "--input-size", "64x96", "--val-split", "test"], "neither masks in"),
        (["--from", "{}", "--input-size", "64x96", "--scales", "2", "1"], "scales 2.0 to 1.0"),
    ],
)
def test_mistakes_get_one_message(
    masks_and_boxes, small_multitask, tmp_path, capsys, options, message
):
    options = [part.replace("{}", str(small_multitask)) for part in options]
    out = str(tmp_path / "out")
    given = ["--data", str(masks_and_boxes), "-o", out]
    assert main(["train", "multitask", *given, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_data_with_one_annotation_are_not_trained_on(
    masks_and_boxes, small_multitask, tmp_path, capsys
):
    for part in ("train", "val", "classes.txt"):
        (tmp_path / part).symlink_to(masks_and_boxes / part)
    given = ["--data", str(tmp_path), "-o", str(tmp_path / "out"), "--from", str(small_multitask)]
    assert main(["train", "multitask", *given]) == 2
    assert "has no boxes; to train both heads it needs masks and boxes" in capsys.readouterr().err


# Through the integers


def test_both_heads_train_through_their_integers(
    masks_and_boxes, small_multitask, tmp_path, capsys
):
    out = tmp_path / "out"
    command = [
        *("train", "multitask", "--data", str(masks_and_boxes), "--from", str(small_multitask)),
        *("--through-integers", "--calib", str(masks_and_boxes / "train" / "images")),
        *("--input-size", "64x96", "--epochs", "2", "--batch", "2", "--lr", "1e-3"),
        *("--scales", "0.8", "1.5", "--validate-every", "2", "-o", str(out)),
    ]
    assert main([*command, "--until", "1"]) == 0
    assert main([*command, "--resume"]) == 0
    assert f"model\t{out / 'model.iqv'}" in capsys.readouterr().out
    history = json.loads((out / "history.json").read_text())
    found = tmp_path / "found.json"
    scored = ["eval", "multitask", str(out / "model.iqv"), "--data", str(masks_and_boxes)]
    assert main([*scored, "--json", str(found)]) == 0
    written = json.loads(found.read_text())
    assert {name: written[name] for name in ("mIoU", "mAP")} == {
        name: history[-1][name] for name in ("mIoU", "mAP")
    }
    assert main([*command, "--crop", "32x64", "--resume"]) == 2
    assert "--crop is for training in float" in capsys.readouterr().err
