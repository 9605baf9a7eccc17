"""Peers of the table of speed alone: compilers, and what is slow to make or to run."""

from pathlib import Path
from typing import Any

import torch
from runtimes import EXECUTORCH, OPENVINO, TVM
from toolchains import PEERS, Peer, all_images
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from workshop import Outputs, Workshop, exported

from iqvit.tvm_backend.targets import resolve

TVM_SECONDS = 30.0


class PlainAttention(TorchFunctionMode):
    """Attention as two products and a softmax, all of which XNNPACK takes.

    The fused operator would be taken apart with a check for rows without a key, which runs in
    portable kernels: two blocks of DeiT-Tiny take 14 ms instead of 8.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = plain_attention if func is scaled_dot_product_attention else func
        return chosen(*args, **(kwargs or {}))


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`scaled_dot_product_attention` of a model in eval mode, without causal masks."""
    if is_causal:
        raise NotImplementedError("causal attention")
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def executorch_int8(shop: Workshop) -> Path:
    """Static int8 by PT2E for XNNPACK, weights per channel, as ExecuTorch's guide to it says; what
    XNNPACK does not take, as a LayerNorm, runs in ExecuTorch's portable kernels."""
    from executorch import version
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def captured(module: Any) -> Any:
        example = (torch.from_numpy(next(shop.inputs(1))),)
        return torch.export.export(module, example, strict=False)

    def build(folder: Path) -> None:
        per_channel = get_symmetric_quantization_config(is_per_channel=True)
        quantizer = XNNPACKQuantizer().set_global(per_channel)
        with torch.no_grad():
            with PlainAttention():
                plain = captured(Outputs(shop.model).eval())
            observed = prepare_pt2e(plain.module(), quantizer)
            for image in shop.inputs():
                observed(torch.from_numpy(image))
            edge = to_edge_transform_and_lower(
                captured(convert_pt2e(observed)), partitioner=[XnnpackPartitioner()]
            )
        (folder / "model.pte").write_bytes(edge.to_executorch().buffer)

    return shop.make(f"executorch-plain-{version.__version__}", build) / "model.pte"


def tvm_float32(shop: Workshop) -> Path:
    """The ONNX model through Relax and TVM's own pipeline for CPUs, for this CPU."""
    import tvm

    source = exported(shop)

    def build(folder: Path) -> None:
        import onnx
        from tvm.relax.frontend.onnx import from_onnx

        module = from_onnx(onnx.load(str(source)), keep_params_in_input=False)
        made = tvm.compile(module, target=resolve("host").tvm_target())
        made.export_library(str(folder / "model.so"))

    return shop.make(f"tvm-{tvm.__version__}", build) / "model.so"


SPEED_PEERS = PEERS | {
    "pytorch-compiled": Peer(None, "torch.compile, inductor", module=torch.compile),
    "openvino-default": Peer(exported, "floats in the precision it chooses", runtime=OPENVINO),
    "executorch-int8": Peer(
        executorch_int8, "PT2E static int8 per channel, XNNPACK", all_images, EXECUTORCH
    ),
    "tvm-float32": Peer(tvm_float32, "Relax, stock pipeline", runtime=TVM, seconds=TVM_SECONDS),
}
