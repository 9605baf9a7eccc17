"""Weights into an RT-DETR, and a trained one as a folder."""

from torch import Tensor

from iqvit.errors import ModelError
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.rtdetr.names import to_our_names
from iqvit.models.weights import Weights, load_weights

SCORE_HEAD = "decoder.enc_score_head.weight"
DENOISING = "decoder.denoising_class_embed.weight"
COUNTER = ".num_batches_tracked"


def load_rtdetr_weights(model: RTDetr, weights: Weights) -> tuple[str, ...]:
    """Copies weights of ours, of the authors or of transformers into `model`; returns notes.

    The batch counters of frozen BatchNorms and the class embedding of the denoising queries, which
    only training reads, may be absent. ModelError where anything else does not fit.
    """
    tensors, named = to_our_names(weights.tensors, weights.source)
    _require_classes(tensors, model.config.classes, weights.source)
    notes = [named] if named else []
    for name, own in model.state_dict().items():
        if name in tensors:
            continue
        if name.endswith(COUNTER):
            tensors[name] = own
        elif name == DENOISING:
            tensors[name] = own
            notes.append("no class embedding for denoising queries: training would start a new one")
    return (*load_weights(model, Weights(tensors, weights.source, weights.notes)), *notes)


def _require_classes(tensors: dict[str, Tensor], classes: int, source: str) -> None:
    head = tensors.get(SCORE_HEAD)
    if head is not None and head.ndim == 2 and head.shape[0] != classes:
        raise ModelError(
            f"{source} was trained for {head.shape[0]} classes, the model is for {classes}; "
            f"make the model for {head.shape[0]} classes"
        )
