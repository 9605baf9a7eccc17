"""`segmenter:FOLDER`, a trained Segmenter, or `segmenter:TIMM_NAME+linear|mask`, a fresh one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iqvit.errors import ModelError
from iqvit.models.float_model import FloatModel, Request, building
from iqvit.models.segmenter import (
    DECODERS,
    ClassMap,
    Segmenter,
    SegmenterConfig,
    at_size,
    load_encoder,
)
from iqvit.models.segmenter_folder import (
    LoadedSegmenter,
    SegmenterMeta,
    classes_of,
    load_segmenter,
    load_whole,
)
from iqvit.models.vit import ViTEncoder
from iqvit.models.vit_loading import HEADS
from iqvit.models.weights import Weights

HEAD_WIDTH = 64


def build(name: str, request: Request) -> FloatModel:
    """The Segmenter in folder `name`, or a fresh one on an encoder of timm's ("vit_tiny...+mask").

    A fresh one needs `num_classes`; weights for it are those of the whole segmenter, or of timm's
    ViT for the encoder alone, which leaves the decoder random.
    """
    loaded = load(
        name,
        image_size=request.input_size,
        classes=request.num_classes,
        weights=request.weights,
    )
    config = loaded.segmenter.config
    height, width = config.image_size
    unnamed = tuple(f"class {i}" for i in range(config.classes))
    return FloatModel(
        module=ClassMap(loaded.segmenter).eval(),
        name=f"segmenter:{name}",
        input_shape=(1, 3, height, width),
        mean=loaded.meta.mean,
        std=loaded.meta.std,
        resize=(height, width),
        crop="squash",
        interpolation="bilinear",
        least=config.patch_size,
        labels=loaded.meta.labels or unnamed,
        weights=loaded.weights,
        notes=loaded.notes,
        task="segmentation",
        palette=loaded.meta.palette,
    )


def load(
    name: str,
    *,
    image_size: tuple[int, int] | None = None,
    classes: int | None = None,
    weights: Weights | None = None,
    drop_path: float | None = None,
) -> LoadedSegmenter:
    """What `name` (a spec without `segmenter:`) means; fresh weights are of torch's random state.

    classes: of a fresh one, needed; of a folder, checked. drop_path: for training, where not the
    folder's own or 0. Raises ModelError: neither folder nor name, an encoder that is no plain ViT,
    impossible sizes, weights that do not fit.
    """
    if not Path(name).is_dir():
        return _fresh(name, image_size, classes, weights, drop_path or 0.0)
    loaded = load_segmenter(Path(name), image_size, weights=weights)
    found = loaded.segmenter.config.classes
    if classes not in (None, found):
        raise ModelError(f"segmenter:{name} has {found} classes, not {classes}")
    segmenter = loaded.segmenter
    return replace(
        loaded, segmenter=at_size(segmenter, segmenter.config.image_size, drop_path=drop_path)
    )


def _fresh(
    name: str,
    image_size: tuple[int, int] | None,
    classes: int | None,
    weights: Weights | None,
    drop_path: float,
) -> LoadedSegmenter:
    architecture, plus, decoder = name.rpartition("+")
    if not plus or decoder not in DECODERS:
        raise ModelError(
            f"segmenter:{name} is neither a folder nor TIMM_NAME+{'|'.join(DECODERS)}, such as "
            "vit_tiny_patch16_224+mask"
        )
    if classes is None:
        raise ModelError(f"segmenter:{name} is a fresh segmenter: give its number of classes")
    config, meta = timm_sizes(
        architecture, decoder, classes=classes, image_size=image_size, drop_path=drop_path
    )
    segmenter = Segmenter(config)
    if weights is None:
        return LoadedSegmenter(segmenter.eval(), meta, "random")
    if classes_of(weights.tensors) is not None:
        return LoadedSegmenter(
            segmenter.eval(), meta, weights.source, load_whole(segmenter, weights)
        )
    notes = (*load_encoder(segmenter, weights), "the weights of the decoder are random")
    return LoadedSegmenter(segmenter.eval(), meta, weights.source, notes)


def timm_sizes(
    architecture: str,
    decoder: str,
    *,
    classes: int,
    image_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> tuple[SegmenterConfig, SegmenterMeta]:
    """The sizes of a Segmenter on timm's `architecture`, with timm's mean and std.

    image_size: timm's own, where not given. Raises ModelError for a name that timm does not have,
    and for anything but a plain ViT with a class token.
    """
    module, data = _timm_vit(architecture)
    spec = f"segmenter:{architecture}+{decoder}"
    try:
        config = SegmenterConfig(
            image_size=tuple(data["input_size"][1:]) if image_size is None else image_size,
            classes=classes,
            patch_size=module.patch_embed.patch_size[0],
            width=module.embed_dim,
            depth=len(module.blocks),
            heads=module.blocks[0].attn.num_heads,
            mlp_ratio=module.blocks[0].mlp.fc1.out_features // module.embed_dim,
            decoder=decoder,
            decoder_heads=max(1, module.embed_dim // HEAD_WIDTH),
            drop_path=drop_path,
            eps=module.norm.eps,
        )
    except (AttributeError, ModelError) as error:
        raise ModelError(f"{spec} cannot be made: {error}") from error
    _require_plain(module, config, spec)
    return config, SegmenterMeta(None, tuple(data["mean"]), tuple(data["std"]))


def _timm_vit(architecture: str) -> tuple[Any, dict[str, Any]]:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise ModelError(
            f"segmenter:{architecture} needs timm, which is not installed: "
            "pip install iqvit[models]"
        ) from error
    from iqvit.models.from_timm import require_known

    require_known(architecture, timm)
    # Without memory for weights: only names, shapes and settings are looked at.
    with building(f"timm:{architecture}"), torch.device("meta"):
        module = timm.create_model(architecture, pretrained=False)
    return module, resolve_model_data_config(module)


def _require_plain(module: Any, config: SegmenterConfig, spec: str) -> None:
    """ModelError unless timm's model has exactly our encoder's weights, and computes alike."""
    with torch.device("meta"):
        ours = ViTEncoder(config.encoder).state_dict()
    theirs = {k: t for k, t in module.state_dict().items() if not k.startswith(HEADS)}
    # The position embedding is of timm's own image size.
    alike = ours.keys() == theirs.keys() and all(
        ours[k].shape == theirs[k].shape for k in ours if k != "pos_embed"
    )
    if not alike or not isinstance(module.blocks[0].mlp.act, nn.GELU):
        differing = sorted(ours.keys() ^ theirs.keys())[:5]
        raise ModelError(
            f"{spec}: the encoder must be a plain ViT with a class token; this one differs "
            f"({', '.join(differing) or 'in shapes or activation'})"
        )
