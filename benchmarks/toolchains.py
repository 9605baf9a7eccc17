"""How other toolchains make their version of a float model, for `peers.py`.

Nothing here is iqvit's way of quantising: each peer gets the model as ONNX and the images that
calibrate iqvit, and does with them what its own guide says.
"""

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iqvit.commands.subject import Subject, float_subject, random_image
from iqvit.models.float_model import FloatModel, logits_of

INPUT, OUTPUT, OPSET = "pixels", "scores", 17

Call = Callable[[np.ndarray], np.ndarray]
"""float32 [1, 3, H, W], normalised -> float32 [1, classes], or the class map [1, H, W]."""
Opener = Callable[[int], Call]
"""A number of threads -> the model, ready to run on so many."""


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


class Scores(nn.Module):
    """A model that returns its scores, or its class map, and nothing else."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        self.module, self.name, self.task = model.module, model.name, model.task

    def forward(self, x: Tensor) -> Tensor:
        found = self.module(x)
        return found if self.task == "segmentation" else logits_of(found, self.name)


def exported(shop: Workshop) -> Path:
    """The float model as ONNX, by the TorchScript-based exporter."""

    def build(folder: Path) -> None:
        torch.onnx.export(
            Scores(shop.model).eval(),
            (torch.from_numpy(next(shop.inputs(1))),),
            str(folder / "model.onnx"),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
        )

    return shop.make("onnx", build) / "model.onnx"


def prepared(shop: Workshop) -> Path:
    """The ONNX model with shapes inferred and constants folded, as ONNX Runtime's guide asks."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = str(exported(shop))
    made = shop.make("prepared", lambda f: quant_pre_process(source, str(f / "model.onnx")))
    return made / "model.onnx"


class Reader:
    """Calibration images in the form in which ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def ort_static(method: str, few: bool, products: bool, shop: Workshop) -> Path:
    """All operators that ONNX Runtime can quantise, or only the matrix products and convolutions
    (`products`), by its CalibrationMethod `method`."""
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
        )

    return shop.make(f"{method}{'-products' if products else ''}", build) / "model.onnx"


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


def ort_opener(path: Path) -> Opener:
    """A session for each number of threads: a session's cannot be changed."""
    import onnxruntime

    @functools.cache
    def open_with(threads: int) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run([OUTPUT], {INPUT: x})[0]

    return open_with


def nncf_int8(transformer: bool, shop: Workshop) -> Path:
    """NNCF with its defaults, or for a transformer: SmoothQuant, and more left in float."""
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
        )
        openvino.save_model(made, folder / "model.xml", compress_to_fp16=False)

    name = "nncf-transformer" if transformer else "nncf-default"
    return shop.make(name, build) / "model.xml"


def openvino_opener(precision: str | None, path: Path) -> Opener:
    """A compiled model for each number of threads; floats in `precision` (None: its choice)."""
    import openvino

    @functools.cache
    def open_with(threads: int) -> Call:
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: request.infer([x])[0]

    return open_with


openvino_int8 = functools.partial(openvino_opener, None)


@dataclass(frozen=True)
class Peer:
    """A toolchain's model: the file that it makes (None: it is the float model itself), how that is
    opened, in words, and on how many images it is calibrated."""

    make: Callable[[Workshop], Path] | None
    note: str
    images: Callable[[Workshop], int] = lambda shop: 0
    open: Callable[[Path], Opener] = ort_opener


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
    "openvino-float32": Peer(exported, "f32 hint", open=functools.partial(openvino_opener, "f32")),
    "nncf-default": Peer(
        functools.partial(nncf_int8, False),
        "OpenVINO int8, default preset",
        all_images,
        openvino_int8,
    ),
    "nncf-transformer": Peer(
        functools.partial(nncf_int8, True),
        "OpenVINO int8, ModelType.TRANSFORMER",
        all_images,
        openvino_int8,
    ),
}


def file_bytes(path: Path) -> int:
    """Of a model file, with the weights that OpenVINO keeps in a file beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def open_peer(name: str, shop: Workshop) -> Subject:
    """A peer as what `iqvit eval` and `iqvit bench` run."""
    model, peer = shop.model, PEERS[name]
    if peer.make is None:
        return float_subject(model, name)
    path = peer.make(shop)
    opener = peer.open(path)
    current = [opener(1)]

    def set_threads(threads: int) -> None:
        current[0] = opener(threads)

    def call(x: np.ndarray) -> np.ndarray:
        return current[0](x)

    def scores(images: Tensor) -> Tensor:
        inputs = model.normalise(images).numpy()
        found = [call(inputs[i : i + 1]).copy() for i in range(len(inputs))]
        return torch.from_numpy(np.concatenate(found))

    return Subject(
        name=name,
        kind="peer",
        input_shape=model.input_shape,
        labels=(),
        preprocessing=model.preprocessing,
        scores=scores,
        example=lambda: model.normalise(random_image(model.input_shape)).numpy(),
        call=call,
        set_threads=set_threads,
        facts={"file_bytes": file_bytes(path)},
    )
