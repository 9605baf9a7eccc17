"""MODEL of the command line: a float model, an .iqv or an artifact, all called alike."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.screen import note
from iqvit.errors import DataError, FileFormatError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from iqvit.eval.preprocess import Preprocess
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel
    from iqvit.tvm_backend.runtime import Artifact

FLOAT, INTERPRETER, LIBRARY, MIXED = "float", "interpreter", "library", "mixed"
CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
MULTITASK = "multitask"
RANKS = {CLASSIFICATION: (2,), SEGMENTATION: (3, 4), DETECTION: (2,), MULTITASK: (3,)}
"""How many axes the output of a task has: [1, classes]; [1, H, W] or [1, classes, H, W]; the scores
[1, K]; of a multi-task model the class map."""
BOXES, SCORES, LABELS = "boxes", "scores", "labels"
"""Names of a detector's outputs."""
CLASSES = "classes"
"""Name of a class map."""
OUTPUTS = {DETECTION: (BOXES, SCORES, LABELS), MULTITASK: (CLASSES, BOXES, SCORES, LABELS)}
"""Names of the outputs of models that have several, in the order of a float model's."""
Size = int | tuple[int, int]
"""Pixels of a side, or (height, width)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Something that scores images.

    kind: "float" (PyTorch), "interpreter" (an .iqv), "library" (an artifact) or "mixed" (an .iqv
    in mixed precision, for comparison). scores takes uint8
    [N, 3, H, W] and gives, by task, "classification": [N, classes]; "segmentation": class indices
    [N, H, W], or logits [N, classes, H, W]. Of scores that are no indices, real = scale *
    (score - zero_point). example and call are for timing: one image in the model's own form, and
    one run on it. facts: metrics known without running it (macs, params, bytes). set_threads holds
    for the calls after it. palette: RGB in 0..255 of each class, where the model has colours.
    For "detection" scores gives [N, K], and outputs all of `BOXES`, `SCORES` and `LABELS`; qparams
    says what the numbers of each output stand for, and is empty for a float model. For "multitask"
    scores gives the class map, and outputs `CLASSES` too; labels and palette are those of the class
    map, box_labels those of the boxes. digest tells one model from another: SHA-256 of the weights
    or of the program.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    scores: Callable[["Tensor"], "Tensor"]
    example: Callable[[], Any]
    call: Callable[[Any], Any]
    set_threads: Callable[[int], None]
    facts: dict[str, Any]
    digest: Callable[[], str]
    scale: float = 1.0
    zero_point: float = 0.0
    folder: Path | None = None
    task: str = CLASSIFICATION
    palette: tuple[tuple[int, int, int], ...] = ()
    outputs: Callable[["Tensor"], Mapping[str, "Tensor"]] | None = None
    qparams: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    box_labels: tuple[str, ...] = ()

    def head(self, task: str) -> "Subject":
        """A multi-task model as one for "segmentation" or "detection"; others as they are.

        It is still run as a whole.
        """
        run = self.outputs
        if self.task != MULTITASK or run is None:
            return self
        if task == DETECTION:
            return replace(
                self, task=task, labels=self.box_labels, palette=(), scores=lambda x: run(x)[SCORES]
            )
        return replace(self, task=SEGMENTATION)

    @property
    def preprocess(self) -> "Preprocess":
        """From an image file to this model's input; `DataError` where the model does not say."""
        from iqvit.eval.preprocess import Preprocess

        if not self.preprocessing:
            raise DataError(
                f"{self.name} does not say how its images are preprocessed: make it with `iqvit "
                'quantize`, or give iqvit.quantize meta={"preprocessing": ...}'
            )
        return Preprocess.from_dict(self.preprocessing)

    def label(self, index: int) -> str:
        """The name of a class; "" where the model has none."""
        return self.labels[index] if index < len(self.labels) else ""


def open_subject(
    text: str,
    *,
    weights: Path | None = None,
    input_size: Size | None = None,
    classes: int | None = None,
    seed: int = 0,
    logits: bool = False,
) -> Subject:
    """The MODEL that `text` names; the options are for a float model and refused for others.

    `logits`: a float segmenter ends in logits, not in a class map; no effect on others, which are
    what they are.
    """
    path = Path(text)
    integer = path.exists() or path.suffix == ".iqv" or ":" not in text
    given = {"--weights": weights, "--input-size": input_size, "--classes": classes}
    unfit = [name for name, value in given.items() if value is not None]
    if not integer:
        model = load_float(text, weights, input_size, classes, seed, logits=logits)
        return float_subject(model)
    if unfit:
        raise ModelError(f"{text} is no float model: {unfit[0]} says nothing about it")
    if path.is_dir():
        return open_artifact(path)
    if path.exists() or path.suffix == ".iqv":
        return open_graph(path)
    raise FileFormatError(
        f"there is no file or folder {text}; a model is an artifact folder, an .iqv file, or a "
        "float model such as timm:vit_tiny_patch16_224 or FILE.py:FUNCTION"
    )


def load_float(
    spec: str,
    weights: Path | None = None,
    input_size: Size | None = None,
    classes: int | None = None,
    seed: int = 0,
    *,
    logits: bool = False,
) -> "FloatModel":
    """A float model, with what its loader decided said to the user.

    `logits`: of a segmenter take the logits of every pixel instead of the class map.
    """
    from iqvit.models.segmenter import with_logits
    from iqvit.models.spec import load_model

    model = load_model(spec, weights=weights, input_size=input_size, num_classes=classes, seed=seed)
    for text in model.notes:
        note(f"{spec}: {text}")
    if model.weights.startswith("random"):
        note(f"{spec}: the weights are {model.weights}; give --weights FILE for trained ones")
    return with_logits(model) if logits else model


def float_subject(model: "FloatModel", name: str | None = None) -> Subject:
    """A float model, run by PyTorch."""
    import torch

    def example() -> torch.Tensor:
        return model.normalise(random_image(model.input_shape))

    def call(x: torch.Tensor) -> Any:
        with torch.inference_mode():
            return model.module(x)

    def pixels(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.module(model.normalise(x))

    names = OUTPUTS.get(model.task, ())

    def outputs(x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return dict(zip(names, pixels(x), strict=True))

    by_task = {
        SEGMENTATION: pixels,
        DETECTION: lambda x: outputs(x)[SCORES],
        MULTITASK: lambda x: outputs(x)[CLASSES],
    }
    return Subject(
        name=name or model.name,
        kind=FLOAT,
        input_shape=model.input_shape,
        labels=model.labels or (),
        preprocessing=model.preprocessing,
        scores=by_task.get(model.task, model.scores),
        example=example,
        call=call,
        set_threads=torch.set_num_threads,
        facts={"params": sum(p.numel() for p in model.module.parameters())},
        digest=lambda: weights_digest(model.module),
        task=model.task,
        palette=model.palette or (),
        outputs=outputs if names else None,
        box_labels=model.box_labels or (),
    )


def open_graph(path: Path) -> Subject:
    """An .iqv, run by the interpreter."""
    from iqvit.serialize import load

    return graph_subject(load(path), str(path))


def graph_subject(
    graph: "IntGraph",
    name: str,
    execute: "Callable[[Tensor], Mapping[str, Tensor]] | None" = None,
    kind: str = INTERPRETER,
) -> Subject:
    """An integer program, run by the interpreter, or by another function of its images."""
    import torch

    from iqvit.cost import cost
    from iqvit.interpret import run
    from iqvit.intgraph import qparams_json

    outputs = execute or (lambda x: run(graph, x))
    shapes = {name: graph[node].type.shape for name, node in graph.outputs.items()}
    task = graph.meta.get("task", CLASSIFICATION)
    chosen = score_output(shapes, name, task)
    quantised = {k: qparams_json(graph[node].qparams) for k, node in graph.outputs.items()}
    scale, zero_point = _scalars(quantised[chosen], name, len(shapes[chosen]))
    shape = graph.input.type.shape
    spent = cost(graph)
    return Subject(
        name=name,
        kind=kind,
        input_shape=shape,
        labels=tuple(graph.meta.get("labels") or ()),
        preprocessing=dict(graph.meta.get("preprocessing") or {}),
        scores=lambda x: outputs(x)[chosen],
        example=lambda: random_image(shape),
        call=outputs,
        set_threads=torch.set_num_threads,
        facts={"macs": spent.macs, "params": spent.params, "bytes": spent.bytes},
        digest=lambda: graph.hash,
        scale=scale,
        zero_point=zero_point,
        task=task,
        palette=colours(graph.meta.get("palette")),
        outputs=outputs,
        qparams=quantised,
        box_labels=tuple(graph.meta.get("box_labels") or ()),
    )


def open_artifact(folder: Path) -> Subject:
    """An artifact, run by TVM."""
    from iqvit.tvm_backend.runtime import load

    return artifact_subject(load(folder), str(folder))


def artifact_subject(artifact: "Artifact", name: str) -> Subject:
    """A loaded artifact."""
    from iqvit.tvm_backend.threads import set_threads

    manifest = artifact.manifest
    outputs = {output["name"]: output for output in manifest["outputs"]}
    shapes = {k: tuple(o["shape"]) for k, o in outputs.items()}
    task = manifest.get("task", CLASSIFICATION)
    chosen = score_output(shapes, name, task)
    scale, zero_point = _scalars(outputs[chosen], name, len(shapes[chosen]))
    return Subject(
        name=name,
        kind=LIBRARY,
        input_shape=artifact.input_shape,
        labels=tuple(manifest["labels"]),
        preprocessing=dict(manifest["preprocessing"]),
        scores=lambda x: artifact(x)[chosen],
        example=lambda: artifact.input_tensor(random_image(artifact.input_shape).numpy()),
        call=artifact.run_one,
        set_threads=set_threads,
        facts={key: manifest[key] for key in ("macs", "params") if key in manifest},
        digest=lambda: f"{manifest['graph_hash']} {manifest['sha256']}",
        scale=scale,
        zero_point=zero_point,
        folder=artifact.folder,
        task=task,
        palette=colours(manifest.get("palette")),
        outputs=artifact,
        qparams=outputs,
        box_labels=tuple(manifest.get("box_labels") or ()),
    )


def weights_digest(module: "nn.Module") -> str:
    """SHA-256 of the names, types, shapes and values of all parameters and buffers, and of the
    modules by name and class."""
    import torch

    parts = [(name, type(part).__name__) for name, part in module.named_modules()]
    digest = hashlib.sha256(repr(parts).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def random_image(shape: tuple[int, ...]) -> "Tensor":
    """uint8 noise of a shape, always the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def score_output(shapes: dict[str, tuple[int, ...]], name: str, task: str) -> str:
    """The output that answers the task (see `RANKS`): by its usual name, otherwise the first."""
    fitting = [output for output, shape in shapes.items() if len(shape) in RANKS.get(task, ())]
    if not fitting:
        raise ModelError(f"{name} has no output for {task}: its outputs are {shapes}")
    return next((usual for usual in ("logits", SCORES, CLASSES) if usual in fitting), fitting[0])


def colours(values: Any) -> tuple[tuple[int, int, int], ...]:
    """A palette as JSON holds it, as tuples; empty for None."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in values or ())


def _scalars(qparams: dict[str, Any] | None, name: str, axes: int) -> tuple[float, float]:
    scale = (qparams or {}).get("scale")
    if axes == 3 and scale is None:
        # A class map holds indices, which stand for themselves.
        return 1.0, 0.0
    if not isinstance(scale, float | int) or qparams is None:
        raise ModelError(f"{name}: its class scores have no common scale, so cannot be compared")
    return float(scale), float(qparams["zero_point"])
