"""Training a detector: boxes under augmentation, the task, sizes of batches, the command line."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

import iqvit
from iqvit.cli import main
from iqvit.errors import DataError, IqvitError, ModelError
from iqvit.eval.coco_data import read_coco
from iqvit.models.rtdetr.config import PyramidConfig, ResNetConfig, RTDetrConfig
from iqvit.models.rtdetr.folder import DetectorCard, load_detector, save_detector
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.rtdetr.training import training_forward
from iqvit.models.spec import load_model
from iqvit.processes import World
from iqvit.training.box_augment import BoxAugment, BoxAugmentation
from iqvit.training.detection import (
    DetectionOptions,
    DetectionTask,
    LearningDetector,
    scales,
)
from iqvit.training.detection_integers import IntegerDetectionTask, decoder_taps
from iqvit.training.detection_model import continued_detector, fresh_detector
from iqvit.training.images import normalise
from iqvit.training.through_integers import ThroughIntegers

SIZE = (64, 96)
SMALL = RTDetrConfig(
    image_size=SIZE, classes=2, backbone=ResNetConfig(8, (8, 8, 16, 16), (1, 1, 1, 1)), width=16,
    heads=2, encoder_ffn=16, rep_blocks=1, queries=12, decoder_layers=2, decoder_ffn=16, points=2,
)  # fmt: skip
VIT = replace(SMALL, backbone=PyramidConfig(width=16, depth=1, heads=2))


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """Six + three images of 80x120 with a red and a green rectangle; one of each has none."""
    root = tmp_path_factory.mktemp("rectangles")
    (root / "annotations").mkdir()
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 6), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            pixels = torch.full((80, 120, 3), 40, dtype=torch.uint8)
            images.append({"id": index, "file_name": f"{index}.png", "height": 80, "width": 120})
            for channel in range(2 if index else 0):
                y, x = (int(torch.randint(40, (), generator=generator)) for _ in range(2))
                pixels[y : y + 24, x : x + 32, channel] = 220
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": channel + 1,
                        "bbox": [x, y, 32, 24],
                        "area": 768,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels.numpy()).save(root / split / f"{index}.png")
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    save_detector(folder, RTDetr(SMALL), DetectorCard(("red", "green")))
    return folder


def task_of(rectangles, start, **options):
    sets = (read_coco(rectangles, split) for split in ("train", "val"))
    return DetectionTask(start, *sets, DetectionOptions(**options))


# Augmentation


@pytest.mark.parametrize(
    "chosen",
    [
        BoxAugmentation(),
        BoxAugmentation(zoom=4.0, zoom_probability=1.0),
        BoxAugmentation(zoom=1.0, crop_probability=1.0, vertical=True),
    ],
)
def test_boxes_stay_on_their_objects(chosen):
    chosen = replace(chosen, colour_probability=0.0)
    augment = BoxAugment((64, 96), (0, 0, 0), chosen)
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[0, 20:60, 30:50] = 255
    boxes, labels = torch.tensor([[30.0, 20.0, 50.0, 60.0]]), torch.tensor([4])
    kept = 0
    for seed in range(20):
        torch.manual_seed(seed)
        seen, ids, found = augment(image, boxes, labels)
        assert (seen.shape, seen.dtype, ids.dtype) == ((3, 64, 96), torch.uint8, torch.int64)
        assert ids.tolist() in ([4], [])
        rows, columns = (seen[0] > 127).nonzero(as_tuple=True)
        if len(ids) == 0:
            continue
        kept += 1
        expected = torch.tensor(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32
        )
        corners = box_convert(found[0], "cxcywh", "xyxy") * torch.tensor([96, 64, 96, 64])
        assert float((corners - expected).abs().max()) <= 1.5
    assert kept >= 10


def test_an_image_without_objects_is_augmented_too():
    augment = BoxAugment((32, 32), (9, 9, 9), BoxAugmentation(crop_probability=1.0))
    seen, ids, boxes = augment(
        torch.zeros(3, 40, 50, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long()
    )
    assert (seen.shape, ids.shape, boxes.shape) == ((3, 32, 32), (0,), (0, 4))


# Where training begins


def test_a_trained_detector_goes_on_with_other_classes_and_sampling(trained):
    start = continued_detector(trained, classes=3, sampling="discrete", queries=10)
    config = start.model.config
    assert (config.classes, config.sampling, config.queries) == (3, "discrete", 10)
    (note,) = [note for note in start.notes if note.startswith("made anew")]
    assert "decoder.enc_score_head.weight" in note
    assert "backbone" not in note
    old, _, _ = load_detector(trained)
    assert torch.equal(start.model.backbone.stem[0].conv.weight, old.backbone.stem[0].conv.weight)
    learns = {n for n, p in start.model.named_parameters() if p.requires_grad}
    assert not any("sampling_offsets" in name for name in learns)
    assert "decoder.layers.0.cross_attn.value_proj.weight" in learns


def test_a_fresh_detector_is_drawn_from_the_seed():
    first, again, other = (
        fresh_detector(
            "rtdetr:vit_tiny", weights=None, classes=2, size=(64, 64), queries=10, seed=s
        )
        for s in (1, 1, 2)
    )
    weight = first.model.backbone.up.weight
    assert torch.equal(weight, again.model.backbone.up.weight)
    assert not torch.equal(weight, other.model.backbone.up.weight)
    with pytest.raises(ModelError, match="--from FOLDER"):
        fresh_detector("segmenter:x", weights=None, classes=2)


def test_more_queries_than_tokens_are_refused(trained):
    with pytest.raises(ModelError, match=r"500 queries are asked for, .* only 126 tokens"):
        continued_detector(trained, classes=2, queries=500)


# The task


@pytest.mark.parametrize("sampling", ["default", "discrete"])
@pytest.mark.parametrize("denoising", [0, 10])
def test_everything_that_learns_gets_a_gradient(rectangles, trained, sampling, denoising):
    """Also where an image, or every image of a batch, has no object: several processes need it."""
    start = continued_detector(trained, classes=2, sampling=sampling)
    task = task_of(rectangles, start, denoising=denoising)
    for indices in ((1, 0, 2), (0, 0)):
        torch.manual_seed(0)
        task.model.train().zero_grad()
        loss = task.loss(task.model, task.collate([task.sample(i) for i in indices]))
        assert loss.shape == ()
        loss.backward()
        without = [
            n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert without == []


def test_validation_is_the_score_of_the_saved_model(rectangles, trained, tmp_path, capsys):
    task = task_of(rectangles, continued_detector(trained, classes=2))
    scores = task.validate(task.model.eval(), World())
    task.save(tmp_path / "saved", task.model)
    found = tmp_path / "found.json"
    command = ["eval", "coco", f"rtdetr:{tmp_path / 'saved'}", "--data", str(rectangles)]
    assert main([*command, "--json", str(found)]) == 0
    capsys.readouterr()
    written = json.loads(found.read_text())
    assert {name: written[name] for name in scores} == scores
    assert set(scores) == {"mAP", "AP50"}


def test_other_classes_for_validation_are_refused(rectangles, trained):
    train, val = (read_coco(rectangles, split) for split in ("train", "val"))
    start = continued_detector(trained, classes=2)
    with pytest.raises(DataError, match="different classes"):
        DetectionTask(start, train, replace(val, classes=("red", "blue")), DetectionOptions())
    empty = replace(val, items=val.items[:1])
    for sets in ((empty, val), (train, empty)):
        with pytest.raises(DataError, match=r"instances_val\.json has no box"):
            DetectionTask(start, *sets, DetectionOptions())
    with pytest.raises(IqvitError, match="learning rate cannot be 0"):
        DetectionOptions(backbone_lr_scale=0)


def test_missing_libraries_are_named(rectangles, trained, monkeypatch):
    monkeypatch.setattr("iqvit.models.rtdetr.training.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs transformers and scipy: pip"):
        task_of(rectangles, continued_detector(trained, classes=2))


# Several sizes


def test_scales_are_multiples_of_the_largest_stride():
    assert scales((256, 320)) == ((192, 256), (224, 288), (256, 320), (288, 352), (320, 384))
    assert scales((32, 32)) == ((32, 32),)


@pytest.mark.parametrize("config", [SMALL, VIT], ids=["resnet", "vit"])
def test_a_batch_of_another_size_trains_the_same_weights(config):
    torch.manual_seed(0)
    model = LearningDetector(RTDetr(config), denoising=0).train()
    objects = [(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.3]]))] * 2
    images = torch.randn(2, 3, 96, 64)
    twin = LearningDetector(RTDetr(replace(config, image_size=(96, 64))), denoising=0).train()
    state = model.state_dict()
    for name, tensor in model._weights_at((96, 64)).items():
        twin.state_dict()[name].copy_(tensor)
    loss, expected = model(images, objects), twin(images, objects)
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert list(state) == list(model.state_dict())
    norms = [n for n in state if n.endswith("running_mean")]
    assert all(torch.equal(model.state_dict()[n], twin.state_dict()[n]) for n in norms)
    assert norms


# Through the integers


def integer_task(rectangles, folder, config=SMALL):
    model = load_model(f"rtdetr:{folder}")
    captured = iqvit.capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    canonical = iqvit.canonicalize(captured)
    sets = [read_coco(rectangles, split) for split in ("train", "val")]
    task = task_of(rectangles, continued_detector(folder, classes=2), denoising=0)
    pixels = torch.stack([task.sample(i)[0] for i in range(3)])
    calibrated = iqvit.calibrate(canonical, [pixels])
    taps = decoder_taps(canonical, config.decoder_layers)
    learner = ThroughIntegers(canonical, calibrated, taps=taps)
    options = DetectionOptions(denoising=0)
    return IntegerDetectionTask(task.start, *sets, options, learner, {}), pixels


@pytest.mark.parametrize("config", [SMALL, VIT], ids=["resnet", "vit"])
def test_the_program_gives_what_the_losses_read(rectangles, tmp_path, config):
    torch.manual_seed(1)
    detector = RTDetr(config)
    for head in (*detector.decoder.dec_score_head, detector.decoder.enc_score_head):
        torch.nn.init.normal_(head.weight, std=0.3)  # tokens differ, so that none is a near tie
    for head in (*detector.decoder.dec_bbox_head, detector.decoder.enc_bbox_head):
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    save_detector(tmp_path / "made", detector.eval(), DetectorCard(("red", "green")))
    task, pixels = integer_task(rectangles, tmp_path / "made", config)
    found = task.model.queries(task.model.learner(pixels))
    exact = training_forward(detector, normalise(pixels, task.start.mean, task.start.std), [])
    assert found.denoising is None
    for name in ("logits", "boxes", "selected_logits", "selected_boxes"):
        ours, wanted = getattr(found, name), getattr(exact, name)
        assert ours.shape == wanted.shape
        # Queries stand in another order where their scores are close, and a few are others.
        ours, wanted = (x.detach().flatten(0, -3).sort(-2).values for x in (ours, wanted))
        assert float((ours - wanted).square().mean() / wanted.square().mean()) < 0.03, name
    loss = task.loss(task.model.train(), (pixels, [task_objects(task, i) for i in range(3)]))
    loss.backward()
    assert [n for n, p in task.model.named_parameters() if p.grad is None] == []
    scaled = {task.learning_rate_scale(n) for n, _ in task.model.named_parameters()}
    assert scaled == {1.0}


def task_objects(task, index):
    torch.manual_seed(index)
    _, labels, boxes, _ = task.sample(index)
    return labels, boxes


def test_the_backbone_has_its_own_learning_rate(rectangles, trained):
    task, _ = integer_task(rectangles, trained)
    task.options = replace(task.options, backbone_lr_scale=0.1)
    scales_ = {n: task.learning_rate_scale(n) for n, _ in task.model.named_parameters()}
    assert 0.1 in scales_.values()
    assert all(("backbone" in name) == (scale == 0.1) for name, scale in scales_.items())


def test_a_detector_trains_through_its_integers(rectangles, trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        *("train", "detection", "--data", str(rectangles), "--from", str(trained)),
        *("--through-integers", "--calib", str(rectangles / "train"), "--epochs", "2"),
        *("--batch", "3", "--lr", "1e-3", "--validate-every", "2", "-o", str(out)),
    ]
    assert main([*command, "--until", "1"]) == 0
    assert main([*command, "--resume"]) == 0
    assert f"model\t{out / 'model.iqv'}" in capsys.readouterr().out
    history = json.loads((out / "history.json").read_text())
    found = tmp_path / "found.json"
    program = str(out / "model.iqv")
    assert main(["eval", "coco", program, "--data", str(rectangles), "--json", str(found)]) == 0
    written = json.loads(found.read_text())
    assert (written["mAP"], written["AP50"]) == (history[-1]["mAP"], history[-1]["AP50"])
    assert iqvit.load(out / "model.iqv").outputs.keys() == {"boxes", "scores", "labels"}
    capsys.readouterr()
    assert main(command) == 2
    assert "already holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--denoising", "5"], "--denoising is for training in float"),
        (["--multi-scale"], "--multi-scale is for training in float"),
        (["--sampling", "discrete"], "--sampling is for training in float"),
    ],
)
def test_options_of_float_training_alone(rectangles, trained, tmp_path, capsys, options, message):
    command = ["train", "detection", "--data", str(rectangles), "--from", str(trained)]
    command += ["--through-integers", "--calib", str(rectangles / "train")]
    assert main([*command, "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_another_model_has_no_taps():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4))
    captured = iqvit.capture(model, (1, 3, 16, 16), mean=[0.5] * 3, std=[0.5] * 3)
    canonical = iqvit.canonicalize(captured)
    with pytest.raises(ModelError, match="it is no RT-DETR"):
        decoder_taps(canonical, 2)


# The command


def test_train_resume_and_use(rectangles, trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        *("train", "detection", "--data", str(rectangles), "--from", str(trained)),
        *("--epochs", "2", "--batch", "3", "--denoising", "6", "--multi-scale", "-o", str(out)),
    ]
    assert main([*command, "--until", "1"]) == 0
    assert main([*command, "--resume"]) == 0
    captured = capsys.readouterr()
    assert f"rtdetr:{out}" in captured.out
    assert len(json.loads((out / "history.json").read_text())) == 2
    detector, card, _ = load_detector(out)
    assert (detector.config, card.labels) == (SMALL, ("red", "green"))
    assert main(command) == 2
    assert "already holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "rtdetr:vit_huge"], "vit_huge"),
        (["--model", "rtdetr:vit_tiny", "--from", "x"], "give one of --model SPEC"),
        (["--from", "{trained}", "--weights", "x.pth"], "--weights goes with --model"),
        (["--from", "{trained}", "--sampling", "cubic"], "'cubic'"),
        (["--from", "{trained}", "--input-size", "65x96"], "65"),
        (["--from", "{trained}", "--val-split", "test"], "test"),
    ],
)
def test_mistakes_get_one_message(rectangles, trained, tmp_path, capsys, options, message):
    options = [part.replace("{trained}", str(trained)) for part in options]
    out = str(tmp_path / "out")
    assert main(["train", "detection", "--data", str(rectangles), "-o", out, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
