"""What a toolchain's model runs in 8 bits and what it leaves in float, as its runtime says itself.

Both runtimes rewrite what they are given, so it is the rewritten program that is counted.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOATS = {"float", "float16", "bfloat16", "double", "f16", "bf16", "f32", "f64"}

ORT_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}
ORT_PRODUCTS = {
    *("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
ORT_INT8 = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger")
ORT_MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Concat"),
    *("Expand", "Gather", "GatherElements", "GatherND", "Identity", "Cast", "Shape", "Tile", "Pad"),
    *("ReorderInput", "ReorderOutput"),
}
ORT_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}

OV_CONVOLUTIONS = {"Convolution", "Deconvolution"}
OV_PRODUCTS = {"FullyConnected", "MatMul"}
OV_MOVES = {
    *("Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Split", "Concatenation"),
    *("Broadcast", "Gather", "GatherElements", "StridedSlice", "Convert", "Tile", "Pad"),
}
OV_SUFFIXES = ("/DequantizationMultiply", "/DequantizationSubtract")
"""What OpenVINO adds to the name of a product that it moves a scale behind."""


@dataclass(frozen=True)
class Step:
    """One operator that a runtime executes; moves of data and changes of format are none.

    kind: its name there. products: how many matrix products and convolutions it holds, and macs
    their multiply-accumulates.
    """

    kind: str
    in_float: bool
    products: int = 0
    macs: int = 0


def in_float(steps: Sequence[Step]) -> dict[str, Any]:
    """Flat metrics of the steps of one image.

    products, macs: of all; float_products, float_macs_share (percent): of those in float;
    float_ops: other operators in float (a fused chain is one); float_kinds: what they are.
    """
    left = [step for step in steps if step.in_float]
    macs, left_macs = (sum(step.macs for step in some) for some in (steps, left))
    others = Counter(step.kind for step in left if step.products == 0)
    return {
        "products": sum(step.products for step in steps),
        "float_products": sum(step.products for step in left),
        "macs": macs,
        "float_macs_share": 100 * left_macs / macs if macs else 0.0,
        "float_ops": others.total(),
        "float_kinds": ", ".join(f"{n} {kind}" for kind, n in others.most_common()),
    }


def product_macs(a: Sequence[int], b: Sequence[int], out: Sequence[int]) -> int:
    """Of a matrix product, whichever of its operands is transposed; b of two axes is for all rows.

    With B products of M x K and K x N, sizes are BMK, BKN and BMN, so their product over B is the
    square of BMNK.
    """
    count = math.prod(out[:-2]) if len(b) > 2 else 1
    return math.isqrt(math.prod(a) * math.prod(b) * math.prod(out) // count)


def convolution_macs(weight: Sequence[int], out: Sequence[int], channels: int) -> int:
    """Of a convolution of `channels` outputs, in groups or not."""
    return math.prod(out) * math.prod(weight) // channels


def onnxruntime_steps(path: Path, feeds: Mapping[str, np.ndarray]) -> list[Step]:
    """Of an ONNX model as ONNX Runtime profiles it.

    Of its float convolutions in blocks of channels the padding to whole blocks counts as well.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    # Otherwise the weights are packed away, and the profile does not say their shapes.
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"] for e in events if e.get("name", "").endswith("_kernel_time")]
    found = [
        ort_step(args["op_name"], args["input_type_shape"], args["output_type_shape"])
        for args in ran
        if "op_name" in args
    ]
    return [step for step in found if step is not None]


def ort_step(
    kind: str, inputs: Sequence[Mapping[str, list[int]]], outputs: Sequence[Mapping[str, list[int]]]
) -> Step | None:
    """What a node of a profile is, from its tensors, each as {type: shape}; None for a move."""
    if kind in ORT_MOVES | ORT_CONVERSIONS:
        return None
    shapes = [shape for tensor in inputs for shape in tensor.values()]
    first = next(iter((*inputs, *outputs)[0]))
    left = not kind.startswith(ORT_INT8) and first in FLOATS
    out = next(iter(outputs[0].values()))
    if kind in ORT_CONVOLUTIONS:
        weight = [shape for shape in shapes if len(shape) > 2][1]
        return Step(kind, left, 1, convolution_macs(weight, out, weight[0]))
    if kind in ORT_PRODUCTS:
        # Scales and zero points, which stand between the operands, have fewer axes.
        a, b = [shape for shape in shapes if len(shape) > 1][:2]
        return Step(kind, left, 1, product_macs(a, b, out))
    return Step(kind, left)


def openvino_steps(path: Path, settings: Mapping[str, Any]) -> list[Step]:
    """Of a model file as OpenVINO's CPU plugin compiles it."""
    import openvino

    core = openvino.Core()
    source = core.read_model(path)
    known = {
        node.get_friendly_name(): product_macs(*ov_shapes(node))
        for node in source.get_ops()
        if node.get_type_name() == "MatMul"
    }
    compiled = core.compile_model(source, "CPU", dict(settings))
    found = [ov_step(node, known) for node in compiled.get_runtime_model().get_ops()]
    return [step for step in found if step is not None]


def ov_step(node: Any, known: Mapping[str, int]) -> Step | None:
    """What a node of a runtime model is; None for a move. known: MACs of the source's products."""
    info = node.get_rt_info()
    kind, precision, names = (
        info[key].astype(str) if key in info else ""
        for key in ("layerType", "runtimePrecision", "originalLayersNames")
    )
    if kind in OV_MOVES:
        return None
    left = precision in FLOATS
    if kind in OV_CONVOLUTIONS:
        _, weight, out = ov_shapes(node)
        return Step(kind, left, 1, convolution_macs(weight, out, out[1]))
    if kind in OV_PRODUCTS:
        return Step(kind, left, 1, product_macs(*ov_shapes(node)))
    # Attention is compiled as one piece, which has the names of what it was made from.
    held = held_products(names, known)
    return Step(kind, left, len(held), sum(known[name] for name in held))


def held_products(names: str, known: Mapping[str, int]) -> set[str]:
    """The source's products among the comma-separated names of a piece."""
    found = set()
    for name in names.split(","):
        for suffix in OV_SUFFIXES:
            name = name.removesuffix(suffix)  # noqa: PLW2901
        found |= {name} & known.keys()
    return found


def ov_shapes(node: Any) -> tuple[list[int], list[int], list[int]]:
    """Of the first two inputs and of the output."""
    ports = (node.input(0), node.input(1), node.output(0))
    a, b, out = ([int(side.get_length()) for side in p.get_partial_shape()] for p in ports)
    return a, b, out


def eager_macs(module: Any, *inputs: Any) -> int:
    """Multiply-accumulates of products and convolutions of a PyTorch model, by torch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2
