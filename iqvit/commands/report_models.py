"""The models that `iqvit report` compares: float, mixed precision, and programs on two runtimes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.quantize import canonical_of
from iqvit.commands.subject import (
    MIXED,
    Subject,
    float_subject,
    graph_subject,
    open_artifact,
)
from iqvit.errors import ModelError

if TYPE_CHECKING:
    from iqvit.canonical import CanonicalModel
    from iqvit.commands.screen import Report as Progress
    from iqvit.intgraph import IntGraph
    from iqvit.mixed import MixedPrecision
    from iqvit.models.float_model import FloatModel


PROGRAM = "model.iqv"


@dataclass(frozen=True, eq=False)
class Contender:
    """A row to be: the names of `iqvit.eval.report`, and what runs.

    graph: of an integer program; file_bytes: of the .iqv, or of the files of the artifact.
    """

    model: str
    runs_on: str
    subject: Subject
    graph: "IntGraph | None" = None
    mixed: "MixedPrecision | None" = None
    file_bytes: int | None = None

    @property
    def name(self) -> str:
        """Model and runtime; different for every row."""
        return f"{self.model} ({self.runs_on})"


@dataclass(frozen=True, eq=False)
class Models:
    """The rows, the canonical float graph, and the calibrated program with its file."""

    contenders: tuple[Contender, ...]
    canonical: "CanonicalModel"
    graph: "IntGraph"
    program: Path


def open_trained(paths: Sequence[Path], model: "FloatModel") -> "list[tuple[str, IntGraph]]":
    """The programs of `--trained` by the names of their rows; ModelError for another model's."""
    from iqvit.eval.report import TRAINED_ROW
    from iqvit.serialize import load

    if len({path.resolve() for path in paths}) < len(paths):
        raise ModelError("the same program is given twice with --trained")
    found = []
    for path in paths:
        graph = load(path)
        require_same_task(graph, model, f"--trained {path}")
        name = TRAINED_ROW if len(paths) == 1 else f"{TRAINED_ROW} ({path.stem})"
        names = [known for known, _ in found]
        found.append((f"{TRAINED_ROW} ({path})" if name in names else name, graph))
    return found


def require_same_task(graph: "IntGraph", model: "FloatModel", name: str) -> None:
    """`ModelError` for a program of another task, input size or classes than the model's."""
    meta = graph.meta
    pairs = {
        "task": (meta.get("task", "classification"), model.task),
        "input size": (graph.input.type.shape[2:], model.input_shape[2:]),
        "classes": (list(meta.get("labels") or ()), list(model.labels or ())),
        "classes of boxes": (list(meta.get("box_labels") or ()), list(model.box_labels or ())),
    }
    for what, (own, wanted) in pairs.items():
        # A program that was made without names may be of any.
        if own not in (wanted, []):
            raise ModelError(
                f"{name} is no program of {model.name}: its {what} is {_short(own)}, the model's "
                f"{_short(wanted)}"
            )


def require_same_architecture(graph: "IntGraph", other: "IntGraph", name: str) -> None:
    """`ModelError` unless both programs do the same products with as many parameters."""
    from iqvit.cost import cost

    own, wanted = cost(graph), cost(other)
    for what, one, two in (
        ("MACs", own.macs, wanted.macs),
        ("parameters", own.params, wanted.params),
    ):
        if one != two:
            raise ModelError(
                f"{name} is no program of {other.meta.get('model')}: it has {one:,} {what}, the "
                f"model {two:,}"
            )


def make_models(
    model: "FloatModel",
    program: "Callable[[CanonicalModel], IntGraph]",
    trained: "Sequence[tuple[str, IntGraph]]",
    folder: Path,
    progress: "Progress",
) -> Models:
    """Capture, calibrate (`program`) and compile; the files go into the folder."""
    from iqvit.eval.report import CALIBRATED_ROW, FLOAT_ROW, MIXED_ROW, PYTORCH
    from iqvit.mixed import MixedPrecision

    canonical = canonical_of(model, progress)
    graph = program(canonical)
    for name, other in trained:
        require_same_architecture(other, graph, name)
    real = float_subject(model)
    bytes_ = 4 * real.facts["params"]
    mixed = MixedPrecision(canonical, graph)
    # Says before anything is run where a program is not the model's.
    progress("mixed precision", len(mixed.functions), len(mixed.functions))
    rows = [
        Contender(FLOAT_ROW, PYTORCH, real, file_bytes=bytes_),
        Contender(MIXED_ROW, PYTORCH, graph_subject(graph, MIXED_ROW, mixed, MIXED), mixed=mixed),
    ]
    for place, (name, made) in enumerate([(CALIBRATED_ROW, graph), *trained]):
        rows += _runtimes(name, made, folder / str(place), progress)
    return Models(tuple(rows), canonical, graph, folder / "0" / PROGRAM)


def _runtimes(name: str, graph: "IntGraph", folder: Path, progress: "Progress") -> list[Contender]:
    """A program on the interpreter and as a library; made into folder/model.iqv and
    folder/artifact."""
    from iqvit import tvm_backend
    from iqvit.eval.report import COMPILED, INTERPRETED
    from iqvit.serialize import save
    from iqvit.tvm_backend.cache import usual_cache

    folder.mkdir()
    save(graph, folder / PROGRAM)
    progress(f"compiling: {name}", 0, 0)
    tvm_backend.compile(graph, folder / "artifact", cache=usual_cache())
    progress(f"compiling: {name}", 1, 1)
    size = (folder / PROGRAM).stat().st_size
    built = sum(file.stat().st_size for file in (folder / "artifact").iterdir())
    one = Contender(name, INTERPRETED, graph_subject(graph, name), graph, file_bytes=size)
    library = replace(open_artifact(folder / "artifact"), name=name)
    return [one, Contender(name, COMPILED, library, graph, file_bytes=built)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} names ({', '.join(map(str, value[:3]))}...)" if value else "unnamed"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value)
