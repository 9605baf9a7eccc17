"""The detection task for an RT-DETR that learns through its integers.

The program holds every layer's boxes and hidden queries, but the score head of the last layer only.
Those of the other layers, which the losses ask for as well, stay beside it in float.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from iqvit.canonical import CanonicalModel, op_of, shape
from iqvit.errors import DataError, IqvitError, ModelError
from iqvit.eval.boxes import BoxFormat, BoxPredictor
from iqvit.eval.coco_data import CocoSet
from iqvit.intgraph import IntGraph
from iqvit.models.rtdetr.model import RTDetr
from iqvit.models.rtdetr.training import Labels, TrainingOutputs, detection_loss
from iqvit.training.detection import DetectionOptions, DetectionTask
from iqvit.training.start import Start
from iqvit.training.task import Network
from iqvit.training.through_integers import ThroughIntegers
from iqvit.training.tuning import learning

OUTPUTS = ("boxes", "scores", "labels")
PREFIX = "decoder."


def decoder_taps(model: CanonicalModel, layers: int) -> dict[str, str]:
    """Nodes of a captured detector that the losses read, for `ThroughIntegers`.

    By name: `scores` [1, T, classes] of all tokens and `chosen`, the indices [1, Q] of the queries;
    the box logits [1, Q, 4] `boxes_0` (of the selected tokens) to `boxes_LAYERS`; the queries
    `hidden_1` to `hidden_LAYERS - 1`, and the class logits `logits`. Raises ModelError where the
    model is no RT-DETR of this package.
    """
    scores = _made(model, "decoder.enc_score_head", "linear")
    best = _reader([_reader([scores], "amax")], "topk")
    chosen = _reader([best], "getitem", last=True)
    boxes = ["decoder.enc_bbox_head.layers.2"]
    boxes += [f"decoder.dec_bbox_head.{place}.layers.2" for place in range(layers)]
    found = {"scores": scores, "chosen": chosen}
    for place, path in enumerate(boxes):
        found[f"boxes_{place}"] = _reader([_made(model, path, "linear")], "add")
    for place in range(1, layers):
        path = f"decoder.layers.{place - 1}.norm3"
        found[f"hidden_{place}"] = _made(model, path, "layer_norm")
    found["logits"] = _made(model, f"decoder.dec_score_head.{layers - 1}", "linear")
    return {f"{PREFIX}{name}": node.name for name, node in found.items()}


def _made(model: CanonicalModel, path: str, operator: str) -> fx.Node:
    """The first node of a module, whatever the module that holds the detector."""
    for node in model.module.graph.nodes:
        if node.op != "call_function" or op_of(node).name != operator:
            continue
        if f".{node.meta['source'].module_path}".endswith(f".{path}"):
            return node
    raise ModelError(f"the captured model has no {operator} of {path}: it is no RT-DETR")


def _reader(nodes: Iterable[fx.Node], operator: str, last: bool = False) -> fx.Node:
    """The reader of an operator; of several the first, or the last."""
    found = [
        user
        for node in nodes
        for user in node.users
        if user.op == "call_function" and op_of(user).name == operator
    ]
    if not found:
        raise ModelError(f"no {operator} where an RT-DETR has one")
    return found[-1 if last else 0]


class QueryHeads(nn.Module):
    """What a learner gives, with `decoder_taps`, -> what the losses read; no denoising queries.

    It has the score heads of all layers but the last, which learn as well.
    """

    def __init__(self, detector: RTDetr) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(h) for h in detector.decoder.dec_score_head[:-1])

    def forward(self, found: Mapping[str, Tensor]) -> TrainingOutputs:
        tapped = {name.removeprefix(PREFIX): value for name, value in found.items()}
        layers = len(self.heads) + 1
        refined = [tapped[f"boxes_{place}"].sigmoid() for place in range(layers + 1)]
        logits = [head(tapped[f"hidden_{n}"]) for n, head in enumerate(self.heads, 1)]
        chosen = tapped["chosen"].unsqueeze(-1).expand(-1, -1, tapped["scores"].shape[-1])
        return TrainingOutputs(
            torch.stack([*logits, tapped["logits"]], 1),
            torch.stack(refined[1:], 1),
            tapped["scores"].gather(1, chosen),
            refined[0],
            None,
        )

    def loss(self, found: Mapping[str, Tensor], objects: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """RT-DETR's loss for the objects of each image, a scalar."""
        labels: list[Labels] = [{"class_labels": ids, "boxes": boxes} for ids, boxes in objects]
        return detection_loss(self(found), labels)[0]


class IntegerDetector(nn.Module):
    """uint8 images [N, 3, H, W] and their objects -> the loss, a scalar."""

    def __init__(self, learner: ThroughIntegers, detector: RTDetr) -> None:
        super().__init__()
        self.learner, self.queries = learner, QueryHeads(detector)

    def forward(self, images: Tensor, objects: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        return self.queries.loss(self.learner(images), objects)


class IntegerDetectionTask(DetectionTask):
    """`DetectionTask` for the program of captured `Detections`.

    start: the trained detector that `learner` was captured from, with `decoder_taps`. What is
    scored and saved is the integer program. told: facts of the calibration.
    """

    def __init__(
        self,
        start: Start[RTDetr],
        train: CocoSet,
        val: CocoSet,
        options: DetectionOptions,
        learner: ThroughIntegers,
        told: Mapping[str, Any],
    ) -> None:
        if options.denoising or options.multi_scale:
            raise IqvitError("a program has its own queries only, and one size")
        known = shape(learner.frame.results[f"{PREFIX}logits"])[-1]
        if known != len(train.classes):
            raise DataError(f"the detector knows {known} classes, the data {len(train.classes)}")
        super().__init__(start, train, val, options)
        self.model = IntegerDetector(learner, start.model)
        self.facts = {**self.facts, "through integers": dict(told)}

    def loss(self, network: Network, batch: Any) -> Tensor:
        images, objects = batch
        return network(images, objects)

    def learning_rate_scale(self, name: str) -> float:
        return self.options.backbone_lr_scale if "detector_backbone_" in name else 1.0

    def predictor(self, model: nn.Module) -> tuple[BoxPredictor, BoxFormat]:
        learner = _learner(model)

        def predict(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return detected(learner.integers(pixels))

        return predict, numbers(learner.export())

    def save(self, folder: Path, model: nn.Module) -> None:
        _learner(model).save(folder)


def detected(found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a program's outputs."""
    boxes, scores, labels = (found[name] for name in OUTPUTS)
    return boxes, scores, labels


def numbers(graph: IntGraph) -> BoxFormat:
    """What the numbers of a program's boxes and scores stand for."""
    values = []
    for name in OUTPUTS[:2]:
        qparams = graph[graph.outputs[name]].qparams
        if qparams is None or qparams.per_channel:
            raise ModelError(f"the program's output {name!r} has no one scale")
        values += [float(qparams.scale), float(qparams.zero_point)]
    return BoxFormat(*values)


def _learner(model: nn.Module) -> ThroughIntegers:
    if not isinstance(model, IntegerDetector):
        raise TypeError(f"an IntegerDetector is trained here, not a {type(model).__name__}")
    return learning(model.learner)
