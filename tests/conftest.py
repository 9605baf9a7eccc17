"""What all tests run with, and what several files share."""

import importlib
import socket
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def without_cache(monkeypatch):
    """Libraries are compiled, and nothing is left in the user's cache."""
    monkeypatch.setenv("IQVIT_CACHE", "off")


@pytest.fixture
def free_port():
    """free_port() -> a port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]

    return find


@pytest.fixture(scope="module")
def benchmark_script(request):
    """benchmark_script(name): the module of a script in benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="session")
def labelled_images():
    """labelled_images(folder, count): random images of 16x16 of five classes, told by name."""
    import numpy as np
    from PIL import Image

    def write(folder: Path, count: int) -> None:
        folder.mkdir()
        pixels = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / f"{i % 5}_{i}.png")

    return write


@pytest.fixture(scope="session")
def masks_and_boxes(tmp_path_factory) -> Path:
    """Four + three images of 80x120 with masks (ground, red, green; 9 is void) and boxes of red and
    green, one or none of each in an image; not to be changed."""
    import numpy as np
    from PIL import Image

    from iqvit.eval.mask_boxes import instances_json, write_instances
    from iqvit.eval.segmentation_data import read_folder

    root = tmp_path_factory.mktemp("masks_and_boxes")
    (root / "classes.txt").write_text("ignore = 9\nground\nred\ngreen\n")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for part in ("images", "annotations"):
            (root / split / part).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (80, 120, 3), dtype=np.uint8)
            mask = np.zeros((80, 120), dtype=np.uint8)
            mask[:4] = 9
            for label in (1, 2) if index else ():
                y, x = random.integers(4, 50), random.integers(60 * label - 60, 60 * label - 32)
                mask[y : y + 24, x : x + 32] = label
                pixels[y : y + 24, x : x + 32, label - 1] = 220
            Image.fromarray(pixels).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "annotations" / f"{index}.png")
        content = instances_json(read_folder(root, split), ["red", "green"])
        write_instances(root / "annotations" / f"instances_{split}.json", content)
    return root


@pytest.fixture(scope="session")
def small_multitask(tmp_path_factory) -> Path:
    """The folder of a multi-task model of 64x96 for the classes of `masks_and_boxes`, with scores
    that differ and class maps that have every class; not to be changed."""
    import torch

    from iqvit.models.multitask.config import MultitaskConfig
    from iqvit.models.multitask.folder import MultitaskCard, save_multitask
    from iqvit.models.multitask.model import Multitask
    from iqvit.models.rtdetr.config import PyramidConfig, RTDetrConfig

    detector = RTDetrConfig(
        image_size=(64, 96), classes=2, backbone=PyramidConfig(32, 1, 2, 2), width=32, heads=2,
        encoder_ffn=48, rep_blocks=1, queries=20, decoder_layers=1, decoder_ffn=48, points=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Multitask(MultitaskConfig(detector, classes=3)).eval()
        for name, value in model.named_parameters():
            # Boxes stay near the anchors.
            if value.ndim == 2 and ("score_head" in name or "segmentation" in name):
                torch.nn.init.normal_(value, std=2 * value.shape[1] ** -0.5)
            elif value.ndim == 2 and "bbox_head" in name:
                torch.nn.init.normal_(value, std=0.2 * value.shape[1] ** -0.5)
            elif "dec_score_head" in name:
                torch.nn.init.zeros_(value)
            elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                torch.nn.init.normal_(value, std=0.1)
    folder = tmp_path_factory.mktemp("multitask") / "net"
    palette = ((90, 90, 90), (220, 0, 0), (0, 220, 0))
    card = MultitaskCard(
        ("ground", "red", "green"), ("red", "green"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), palette
    )
    save_multitask(folder, model, card)
    return folder
