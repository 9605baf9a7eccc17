"""How other toolchains make their version of a float model.

Nothing here is iqvit's way of quantising: each peer gets the model as ONNX and the images that
calibrate iqvit, and does with them what its own guide says.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executed import Step
from runtimes import INPUT, ONNX_RUNTIME, OPENVINO, OPENVINO_F32, Runtime
from torch import Tensor, nn
from workshop import Workshop, exported, output_names

from iqvit.commands.subject import DETECTION, SCORES, Subject, float_subject, random_image

NO_SCALE = {"scale": 1.0, "zero_point": 0.0}


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
    on how many images it is calibrated, and what runs it.

    module: what PyTorch runs in place of the float model, where no file is made. seconds: how long
    a peer that takes seconds an image may be timed at each number of threads (None: for all runs).
    """

    make: Callable[[Workshop], Path] | None
    note: str
    images: Callable[[Workshop], int] = lambda shop: 0
    runtime: Runtime = ONNX_RUNTIME
    module: Callable[[nn.Module], Any] = nn.Module.eval
    seconds: float | None = None


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
        OPENVINO,
    ),
    "nncf-transformer": Peer(
        functools.partial(nncf_int8, True),
        "OpenVINO int8, ModelType.TRANSFORMER",
        all_images,
        OPENVINO,
    ),
}


def file_bytes(path: Path) -> int:
    """Of a model file, with the weights that OpenVINO keeps in a file beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def steps_of(peer: Peer, shop: Workshop) -> list[Step]:
    """What the runtime of a peer executes; the peer is one whose runtime says so."""
    assert peer.make is not None
    assert peer.runtime.steps is not None
    return peer.runtime.steps(peer.make(shop), next(shop.inputs(1)))


def in_pytorch(name: str, peer: Peer, shop: Workshop) -> Subject:
    """A peer that is the float model; called once, since `torch.compile` compiles only then."""
    module = shop.model.module
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    subject = float_subject(replace(shop.model, module=peer.module(module)), name)
    subject.set_threads(1)
    subject.call(subject.example())
    return replace(subject, facts=subject.facts | {"file_bytes": size})


def open_peer(name: str, peer: Peer, shop: Workshop) -> Subject:
    """A peer as what `iqvit eval` and `iqvit bench` run."""
    model = shop.model
    if peer.make is None:
        return in_pytorch(name, peer, shop)
    known = float_subject(model, name)
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
        facts=known.facts | {"file_bytes": file_bytes(path)} | peer.runtime.facts(),
        outputs=outputs,
        qparams=dict.fromkeys(output_names(model), NO_SCALE),
    )
