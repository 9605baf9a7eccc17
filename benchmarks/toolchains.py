"""How other toolchains make their version of a float model.

Nothing here is iqvit's way of quantising: each peer gets the model as ONNX and the images that
calibrate iqvit, and does with them what its own guide says.
"""

import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executed import Step
from runtimes import INPUT, ONNX_RUNTIME, OPENVINO_F32, OPENVINO_INT8, Runtime
from torch import Tensor, nn

from iqvit.commands.subject import (
    BOXES,
    DETECTION,
    LABELS,
    SCORES,
    SEGMENTATION,
    Subject,
    float_subject,
    random_image,
)
from iqvit.models.float_model import FloatModel, logits_of

OPSET = 17
NO_SCALE = {"scale": 1.0, "zero_point": 0.0}


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


def prepared(shop: Workshop) -> Path:
    """The ONNX model with shapes inferred and constants folded, as ONNX Runtime's guide asks.

    Its symbolic inference fails where the shape of a reshape is computed, as in a detector's
    sampling; folding and ONNX's own inference find all shapes there.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = str(exported(shop))
    without = shop.model.task == DETECTION

    def build(folder: Path) -> None:
        quant_pre_process(source, str(folder / "model.onnx"), skip_symbolic_shape=without)

    return shop.make("prepared", build) / "model.onnx"


class Reader:
    """Calibration images in the form in which ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def ort_static(
    method: str, few: bool, products: bool, shop: Workshop, leave: str | None = None
) -> Path:
    """All operators that ONNX Runtime can quantise, or only the matrix products and convolutions
    (`products`), by its CalibrationMethod `method`; those named as the expression `leave` says
    stay float."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    source = prepared(shop)

    def build(folder: Path) -> None:
        quantize_static(
            source,
            folder / "model.onnx",
            Reader(shop.inputs(shop.few if few else None)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            op_types_to_quantize=["MatMul", "Gemm", "Conv"] if products else None,
            nodes_to_exclude=None if leave is None else node_names(source, leave),
        )

    name = f"{method}{'-products' if products else ''}{'' if leave is None else '-part'}"
    return shop.make(name, build) / "model.onnx"


def node_names(source: Path, pattern: str) -> list[str]:
    """Of the nodes of an ONNX model that match from their beginning."""
    import onnx

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return [node.name for node in nodes if re.match(pattern, node.name)]


def ort_dynamic(shop: Workshop) -> Path:
    """Products with weights; the convolution stays float, it has no kernel for int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = prepared(shop)

    def build(folder: Path) -> None:
        quantize_dynamic(
            source,
            folder / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )

    return shop.make("dynamic", build) / "model.onnx"


def nncf_int8(transformer: bool, shop: Workshop, leave: str | None = None) -> Path:
    """NNCF with its defaults, or for a transformer: SmoothQuant, and more left in float; operators
    named as the expression `leave` says stay float."""
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports its use over the network
    import nncf
    import openvino

    source = exported(shop)

    def build(folder: Path) -> None:
        nncf.set_log_level(logging.ERROR)
        made = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(list(shop.inputs())),
            subset_size=len(shop.images),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=None if leave is None else nncf.IgnoredScope(patterns=[leave]),
        )
        openvino.save_model(made, folder / "model.xml", compress_to_fp16=False)

    name = f"nncf-{'transformer' if transformer else 'default'}{'' if leave is None else '-part'}"
    return shop.make(name, build) / "model.xml"


@dataclass(frozen=True)
class Peer:
    """A toolchain's model: the file that it makes (None: it is the float model itself), in words,
    on how many images it is calibrated, and what runs it."""

    make: Callable[[Workshop], Path] | None
    note: str
    images: Callable[[Workshop], int] = lambda shop: 0
    runtime: Runtime = ONNX_RUNTIME


def all_images(shop: Workshop) -> int:
    return len(shop.images)


def few_images(shop: Workshop) -> int:
    return min(shop.few, len(shop.images))


def qdq(method: str, few: bool, products: bool = False) -> Peer:
    what = "products and convolutions only, the rest float" if products else "all it can"
    fewer = " on fewer images (memory)" if few else ""
    return Peer(
        functools.partial(ort_static, method, few, products),
        f"static QDQ u8s8 per channel, {method}{fewer}; {what}",
        few_images if few else all_images,
    )


PEERS: dict[str, Peer] = {
    "pytorch-float32": Peer(None, "eager"),
    "onnxruntime-float32": Peer(exported, "all optimisations"),
    "onnxruntime-minmax": qdq("MinMax", few=False),
    "onnxruntime-mixed": qdq("MinMax", few=False, products=True),
    "onnxruntime-entropy": qdq("Entropy", few=True),
    "onnxruntime-percentile": qdq("Percentile", few=True),
    "onnxruntime-dynamic": Peer(ort_dynamic, "MatMul and Gemm, s8 weights per channel"),
    "openvino-float32": Peer(exported, "f32 hint", runtime=OPENVINO_F32),
    "nncf-default": Peer(
        functools.partial(nncf_int8, False),
        "OpenVINO int8, default preset",
        all_images,
        OPENVINO_INT8,
    ),
    "nncf-transformer": Peer(
        functools.partial(nncf_int8, True),
        "OpenVINO int8, ModelType.TRANSFORMER",
        all_images,
        OPENVINO_INT8,
    ),
}


def file_bytes(path: Path) -> int:
    """Of a model file, with the weights that OpenVINO keeps in a file beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def steps_of(peer: Peer, shop: Workshop) -> list[Step]:
    """What the runtime of a peer executes; the peer is one that has a file."""
    assert peer.make is not None
    return peer.runtime.steps(peer.make(shop), next(shop.inputs(1)))


def open_peer(name: str, peer: Peer, shop: Workshop) -> Subject:
    """A peer as what `iqvit eval` and `iqvit bench` run."""
    model = shop.model
    known = float_subject(model, name)
    if peer.make is None:
        size = sum(tensor.nbytes for tensor in model.module.state_dict().values())
        return replace(known, facts=known.facts | {"file_bytes": size})
    path = peer.make(shop)
    opener = peer.runtime.open(path)
    current = [opener(1)]

    def set_threads(threads: int) -> None:
        current[0] = opener(threads)

    def call(x: np.ndarray) -> Sequence[np.ndarray]:
        return current[0](x)

    def outputs(images: Tensor) -> dict[str, Tensor]:
        inputs = model.normalise(images).numpy()
        found = [call(inputs[i : i + 1]) for i in range(len(inputs))]
        return {
            name: torch.from_numpy(np.concatenate([each[place] for each in found]))
            for place, name in enumerate(output_names(model))
        }

    return replace(
        known,
        kind="peer",
        scores=lambda images: outputs(images)[SCORES],
        example=lambda: model.normalise(random_image(model.input_shape)).numpy(),
        call=call,
        set_threads=set_threads,
        facts=known.facts | {"file_bytes": file_bytes(path)},
        outputs=outputs,
        qparams=dict.fromkeys(output_names(model), NO_SCALE),
    )
