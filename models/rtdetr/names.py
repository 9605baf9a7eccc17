"""What other people call the weights of an RT-DETRv2, as rules that rename them to ours.

The authors': github.com/lyuwenyu/RT-DETR, rtdetrv2_pytorch. transformers':
`RTDetrV2ForObjectDetection`, the names of version 5 and those of the published checkpoints before.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from iqvit.errors import ModelError

Rules = tuple[tuple[str, str], ...]

# Buffers that follow from the configuration.
DERIVED = re.compile(r"(\.num_points_scale|\.n_points_scale|\.anchors|\.valid_mask)$")

AUTHORS: Rules = (
    (r"^backbone\.conv1\.conv1_1\.", "backbone.stem.0."),
    (r"^backbone\.conv1\.conv1_2\.", "backbone.stem.1."),
    (r"^backbone\.conv1\.conv1_3\.", "backbone.stem.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.", r"backbone.stages.\1."),
    (r"\.branch2a\.", ".convs.0."),
    (r"\.branch2b\.", ".convs.1."),
    (r"\.short\.(?:conv\.)?(conv|norm)\.", r".shortcut.\1."),
    (r"^encoder\.encoder\.0\.layers\.", "encoder.aifi."),
    (r"^decoder\.decoder\.layers\.", "decoder.layers."),
    (r"\.linear([12])\.", r".ffn.fc\1."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
)
OLDER_TRANSFORMERS: Rules = (
    # Names before version 5.
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"(\.layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
    (r"^model\.encoder\.encoder\.0\.layers\.", "model.encoder.aifi.0.layers."),
)
TRANSFORMERS: Rules = (
    *OLDER_TRANSFORMERS,
    # The backbone.
    (r"^model\.backbone\.model\.embedder\.embedder\.", "backbone.stem."),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.", r"backbone.stages.\1."),
    (r"\.layer\.([01])\.", r".convs.\1."),
    (r"\.shortcut\.1\.", ".shortcut."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    # The encoder.
    (r"^model\.(encoder|decoder)_input_proj\.(\d)\.0\.", r"\1.input_proj.\2.conv."),
    (r"^model\.(encoder|decoder)_input_proj\.(\d)\.1\.", r"\1.input_proj.\2.norm."),
    (r"^model\.encoder\.aifi\.0\.layers\.", "model.encoder.aifi."),
    (r"^(model\.encoder\..*\.)final_layer_norm\.", r"\1norm2."),
    # The decoder.
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.", ".ffn."),
    (r"^model\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^model\.enc_output\.1\.", "decoder.enc_output.norm."),
    (r"^model\.(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    (r"^(?:model\.decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(?:model\.decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.(encoder|decoder)\.", r"\1."),
)


def to_our_names(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """The tensors under our names, and a note on whose names they had ("" for ours)."""
    if "model.enc_score_head.weight" in tensors:
        return rename(_without_derived(tensors), TRANSFORMERS, source), "named as by transformers"
    if any(name.startswith("decoder.decoder.layers.") for name in tensors):
        renamed = rename(_without_derived(tensors), AUTHORS, source)
        return _split_projections(renamed, source), "named as by the authors of RT-DETR"
    return dict(tensors), ""


def rename(tensors: Mapping[str, Tensor], rules: Rules, source: str) -> dict[str, Tensor]:
    """The tensors by the names that `rules` (pattern, replacement) make.

    ModelError where two different tensors get one name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        # transformers keeps the heads under two names.
        if ours in renamed and not torch.equal(renamed[ours], tensor):
            raise ModelError(f"{source}: {name} and another name for {ours} hold different weights")
        renamed[ours] = tensor
    return renamed


def _without_derived(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not DERIVED.search(name)}


def _split_projections(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`in_proj_weight` of torch's MultiheadAttention is that of q, k and v, stacked."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place, found, kind = name.partition("in_proj_")
        if not found:
            split[name] = tensor
            continue
        if tensor.ndim == 0 or tensor.shape[0] % 3 != 0:
            raise ModelError(f"{source}: {name} {list(tensor.shape)} is not q, k and v, stacked")
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{place}{part}_proj.{kind}"] = rows
    return split
