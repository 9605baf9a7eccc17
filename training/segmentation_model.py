"""The segmenter that training begins with, at whatever size, and how it is kept."""

import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from iqvit.errors import ModelError
from iqvit.eval.segmentation_data import SegmentationSet
from iqvit.files import write_atomically
from iqvit.models.segmenter import Segmenter, SegmenterConfig, load_encoder
from iqvit.models.vit import resample_positions
from iqvit.models.weights import read_weights

POSITIONS = "encoder.pos_embed"


@dataclass(frozen=True)
class Start:
    """name: the model's spec. weights: where its weights are from. mean, std: of RGB in 0..1."""

    segmenter: Segmenter
    name: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def make_start(
    name: str,
    *,
    folder: bool,
    weights: Path | None,
    size: tuple[int, int],
    classes: int,
    drop_path: float,
    seed: int,
) -> Start:
    import timm
    from timm.data.config import resolve_model_data_config

    architecture, _, decoder = name.removeprefix("segmenter:").partition("+")
    model: Any = timm.create_model(architecture, pretrained=False)
    data = resolve_model_data_config(model)
    config = SegmenterConfig(
        size, classes, patch_size=model.patch_embed.patch_size[0], width=model.embed_dim,
        depth=len(model.blocks), heads=model.blocks[0].attn.num_heads, decoder=decoder or "linear",
        decoder_heads=model.blocks[0].attn.num_heads, drop_path=drop_path,
    )
    torch.manual_seed(seed)
    segmenter = Segmenter(config)
    if weights is not None:
        load_encoder(segmenter, read_weights(weights))
    return Start(segmenter, name, "random" if weights is None else weights.name,
                 tuple(data["mean"]), tuple(data["std"]))


def at_size(model: nn.Module, size: tuple[int, int]) -> Segmenter:
    """`model`, or a copy for images of `size` (height, width), its position embedding resampled."""
    if not isinstance(model, Segmenter):
        raise ModelError(f"a Segmenter is trained here, not a {type(model).__name__}")
    if model.config.image_size == size:
        return model
    made = copy.deepcopy(model.state_dict())
    with torch.random.fork_rng(devices=[]):
        other = Segmenter(replace(model.config, image_size=size))
    made[POSITIONS] = resample_positions(made[POSITIONS], model.config.grid, other.config.grid)
    other.load_state_dict(made)
    return other.to(next(model.parameters()).device).train(model.training)


def save(folder: Path, segmenter: Segmenter, start: Start, data: SegmentationSet) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"task": "segmentation", **asdict(segmenter.config), "labels": list(data.classes),
              "mean": list(start.mean), "std": list(start.std), "palette": [list(c) for c in data.palette]}
    tensors = {k: t.cpu().contiguous() for k, t in segmenter.state_dict().items()}
    write_atomically(folder / "model.safetensors", safetensors_bytes(tensors))
    write_atomically(folder / "config.json", json.dumps(config, indent=1).encode())
