"""Mixed precision of iqvit itself: integers up to the feature maps, the decoder in float.

Backbone and hybrid encoder, captured by themselves, become an integer program whose outputs are
the maps that the decoder reads, in 16 bits; dequantised they go to the float decoder.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from comparing import Job
from executed import eager_macs, in_float, onnxruntime_steps
from runtimes import ort_session
from toolchains import NO_SCALE
from torch import Tensor, nn
from workshop import OPSET, Workshop, output_names

from iqvit import tvm_backend
from iqvit.calibration.quantize import quantize
from iqvit.calibration.recipe import Recipe
from iqvit.commands.screen import Report
from iqvit.commands.subject import SCORES, Subject, float_subject, random_image
from iqvit.models.rtdetr.model import Detections, RTDetr
from iqvit.serialize import save
from iqvit.tvm_backend.runtime import Artifact
from iqvit.tvm_backend.threads import set_threads as set_tvm_threads

MAPS = ["map8", "map16", "map32"]
"""Inputs of the decoder, by their strides."""

Decode = Callable[[Sequence[Tensor]], Sequence[Any]]
"""Three maps float32 [1, width, H/s, W/s] -> boxes, scores and labels."""


class Encoder(nn.Module):
    """Normalised image -> the maps that a detector's decoder reads."""

    def __init__(self, detector: RTDetr) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector.features(x))


@dataclass(frozen=True)
class Half:
    """A decoder of some runtime. decode is for the threads that were set last."""

    decode: Decode
    set_threads: Callable[[int], None]
    facts: dict[str, Any]


class Mixed:
    """The two halves of the detector of a workshop. The integer one is made once, when it is
    needed, and kept until `stack` closes; `recipe` is how it is quantised."""

    def __init__(self, shop: Workshop, recipe: Recipe, stack: ExitStack, report: Report) -> None:
        self.shop, self.recipe, self.report = shop, recipe, report
        self.folder = Path(stack.enter_context(TemporaryDirectory()))

    @property
    def detector(self) -> RTDetr:
        """ValueError for a model that does not have these halves."""
        module = self.shop.model.module
        if isinstance(module, Detections) and isinstance(module.detector, RTDetr):
            return module.detector
        raise ValueError("only a detector rtdetr:... is divided into encoder and decoder")

    @functools.cached_property
    def decoder(self) -> Detections:
        """From the three maps, in place of an image, to boxes, scores and labels."""
        module: Any = self.shop.model.module
        return Detections(self.detector.decoder, module.top).eval()

    @functools.cached_property
    def encoder(self) -> Artifact:
        """The integer half."""
        model = self.shop.model
        graph = quantize(
            Encoder(self.detector),
            self.shop.images,
            self.recipe,
            mean=model.mean,
            std=model.std,
            progress=self.report,
        )
        save(graph, self.folder / "encoder.iqv")
        self.report("compiling the encoder", 0, 0)
        return tvm_backend.load(tvm_backend.compile(graph, self.folder / "artifact"))

    def subject(self, name: str, runtime: Callable[["Mixed"], Half]) -> Subject:
        """Both halves as what `iqvit eval` and `iqvit bench` run."""
        encoder, half = self.encoder, runtime(self)
        scales = [(output["zero_point"], output["scale"]) for output in encoder.manifest["outputs"]]

        def call(x: Any) -> Sequence[Any]:
            found = encoder.run_one(x)
            maps = zip((torch.from_numpy(part.numpy()) for part in found), scales, strict=True)
            return half.decode([(part.float() - zero) * scale for part, (zero, scale) in maps])

        def outputs(images: Tensor) -> dict[str, Tensor]:
            found = [call(encoder.input_tensor(image[None].numpy())) for image in images]
            by_output = zip(*found, strict=True)
            columns = [torch.cat([torch.as_tensor(p) for p in parts]) for parts in by_output]
            return dict(zip(output_names(self.shop.model), columns, strict=True))

        def set_threads(threads: int) -> None:
            set_tvm_threads(threads)
            half.set_threads(threads)

        known = float_subject(self.shop.model, name)
        noise = random_image(known.input_shape).numpy()
        return replace(
            known,
            kind="mixed",
            scores=lambda images: outputs(images)[SCORES],
            example=lambda: encoder.input_tensor(noise),
            call=call,
            set_threads=set_threads,
            facts=known.facts | self.facts(half),
            outputs=outputs,
            qparams=dict.fromkeys(output_names(self.shop.model), NO_SCALE),
        )

    def facts(self, half: Half) -> dict[str, Any]:
        """Size and cost of both halves together; what is in float is the decoder."""
        decoding = eager_macs(self.decoder, self.example_maps())
        macs = self.encoder.manifest["macs"] + decoding
        weights = sum(4 * parameter.numel() for parameter in self.decoder.parameters())
        return {
            **half.facts,
            "macs": macs,
            "float_macs_share": 100 * decoding / macs,
            "file_bytes": (self.folder / "encoder.iqv").stat().st_size + weights,
        }

    def example_maps(self) -> list[Tensor]:
        """Of noise, in float."""
        image = self.shop.model.normalise(random_image(self.shop.model.input_shape))
        with torch.no_grad():
            return self.detector.features(image)


def in_pytorch(mixed: Mixed) -> Half:
    """The decoder in PyTorch, eager."""

    def decode(maps: Sequence[Tensor]) -> Sequence[Any]:
        with torch.inference_mode():
            return mixed.decoder(list(maps))

    return Half(decode, torch.set_num_threads, {})


def in_onnxruntime(mixed: Mixed) -> Half:
    """The decoder in ONNX Runtime."""
    path, maps = mixed.folder / "decoder.onnx", mixed.example_maps()
    torch.onnx.export(
        mixed.decoder,
        (maps,),
        str(path),
        input_names=MAPS,
        output_names=output_names(mixed.shop.model),
        opset_version=OPSET,
        dynamo=False,
    )
    open_with = functools.cache(lambda threads: ort_session(path, threads))
    current = [open_with(1)]

    def set_threads(threads: int) -> None:
        current[0] = open_with(threads)

    def decode(maps: Sequence[Tensor]) -> Sequence[np.ndarray]:
        return current[0].run(None, feeds(maps))

    left = in_float(onnxruntime_steps(path, feeds(maps)))
    told = {key: left[key] for key in ("float_products", "float_ops", "float_kinds")}
    return Half(decode, set_threads, told)


def feeds(maps: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Maps as the exported decoder takes them."""
    return {name: part.numpy() for name, part in zip(MAPS, maps, strict=True)}


MIXED: dict[str, tuple[Callable[[Mixed], Half], str]] = {
    "iqvit-decoder-float": (in_onnxruntime, "iqvit up to the maps; decoder in ONNX Runtime"),
    "iqvit-decoder-float-pytorch": (in_pytorch, "iqvit up to the maps; decoder in PyTorch"),
}


def mixed_job(name: str, mixed: Mixed) -> Job:
    """Of one of `MIXED`."""
    runtime, note = MIXED[name]
    row = {"peer": name, "note": note, "calibration_images": len(mixed.shop.images)}
    return Job(row, functools.partial(mixed.subject, name, runtime))
