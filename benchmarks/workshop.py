"""Where peers are made: the float model as ONNX, the calibration images and a folder for it all."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runtimes import INPUT
from torch import Tensor, nn

from iqvit.commands.subject import BOXES, DETECTION, LABELS, SCORES, SEGMENTATION
from iqvit.models.float_model import FloatModel, logits_of

OPSET = 17


@dataclass(frozen=True)
class Workshop:
    """What peers are made from, and the folder in which each thing made is kept.

    images: uint8 [N, 3, H, W] of the calibration. few: how many of them the calibrators get that
    hold every activation of every image in memory.
    """

    model: FloatModel
    images: Tensor
    few: int
    folder: Path

    def make(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder `name` with what `build(folder)` writes: once, and whole or not at all."""
        done = self.folder / name
        if not done.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as part:
                inside = Path(part) / name
                inside.mkdir()
                build(inside)
                inside.rename(done)
        return done

    def inputs(self, count: int | None = None) -> Iterator[np.ndarray]:
        """The first `count` calibration images as a peer takes them, one by one."""
        for image in self.images[:count]:
            yield self.model.normalise(image[None]).numpy()


def output_names(model: FloatModel) -> list[str]:
    """Of a detector boxes, scores and labels; of others the scores, or the class map."""
    return [BOXES, SCORES, LABELS] if model.task == DETECTION else [SCORES]


class Outputs(nn.Module):
    """A model that returns its `output_names`, and nothing else."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        self.module, self.name, self.task = model.module, model.name, model.task

    def forward(self, x: Tensor) -> Any:
        found = self.module(x)
        return found if self.task in (SEGMENTATION, DETECTION) else logits_of(found, self.name)


def exported(shop: Workshop) -> Path:
    """The float model as ONNX, by the TorchScript-based exporter."""

    def build(folder: Path) -> None:
        torch.onnx.export(
            Outputs(shop.model).eval(),
            (torch.from_numpy(next(shop.inputs(1))),),
            str(folder / "model.onnx"),
            input_names=[INPUT],
            output_names=output_names(shop.model),
            opset_version=OPSET,
            dynamo=False,
        )

    return shop.make("onnx", build) / "model.onnx"
