"""What `iqvit demo` measures: accuracy, equality and time of float, interpreter and library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.subject import BOXES, CLASSES, DETECTION, LABELS, SCORES, random_image
from iqvit.errors import GraphError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.commands.screen import Report
    from iqvit.commands.subject import Subject
    from iqvit.eval.multitask_data import LabelledSet, MultitaskSet
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

    Outputs = Mapping[str, "Tensor"]

NOISE = 8
"""Images of noise on which interpreter and library must also give equal integers."""
RUNS = 30
SHOWN_SCORE = 0.5
"""Of the boxes in the pictures."""
COLUMNS = (
    "program",
    "mIoU",
    "mAP",
    "AP50",
    "equal_pixels",
    "equal_boxes",
    "MB",
    "threads",
    "latency_ms",
    "fps",
)
TASK_METRICS = ("mIoU", "mAP", "AP50", "equal_pixels", "equal_boxes")


def score_demo(
    folder: Path, model: "FloatModel", graph: "IntGraph", pictures: int, report: "Report"
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """All metrics, the rows of the table, and in a sentence what is equal.

    Writes pictures/ with so many of the scenes. GraphError where interpreter and library differ.
    """
    from iqvit.commands.bench import measure
    from iqvit.commands.subject import float_subject, graph_subject, open_artifact
    from iqvit.eval.bench import machine
    from iqvit.eval.multitask_data import read_multitask, require_both
    from iqvit.tvm_backend.threads import prepare_threads

    exact = float_subject(model, "float32, PyTorch")
    interpreter = graph_subject(graph, "integers, interpreter")
    library = open_artifact(folder / "artifact")
    data = read_multitask(folder / "scenes", "test")
    answers: dict[str, list[Outputs]] = {}
    for subject in (exact, interpreter, library):
        answers[subject.kind] = run_all(subject, data, report)
    require_equal(answers[interpreter.kind], answers[library.kind])
    noise = random_image((NOISE, *library.input_shape[1:])).split(1)
    require_equal(*([_run(s, image) for image in noise] for s in (interpreter, library)))
    found = score(library, exact, data, answers)
    labelled = require_both(data, folder / "scenes" / "test")
    draw(folder / "pictures", (exact, library), labelled, answers, pictures)
    about = machine()
    threads = sorted({1, min(2, about["cores"], prepare_threads())})
    timed = {(r["kind"], r["threads"]): r for r in measure([exact, library], threads, RUNS, report)}
    found |= {**interpreter.facts, "images": len(data), **about}
    real = {name: found.get(f"float_{name}") for name in TASK_METRICS}
    own = {name: found.get(name) for name in TASK_METRICS}
    rows: list[dict[str, Any]] = []
    for count in threads:
        measured = timed[exact.kind, count], timed[library.kind, count]
        rows.append({**measured[0], "program": exact.name, **real, "MB": 4 * found["params"] / 1e6})
        rows.append({**measured[1], "program": "integers, TVM", **own, "MB": found["bytes"] / 1e6})
        suffix = "" if count == threads[0] else f"@{count}"
        for row, prefix in zip(measured, ("float_", ""), strict=True):
            names = ("latency_ms", "latency_p90_ms", "fps")
            found |= {f"{prefix}{name}{suffix}": row[name] for name in names}
    rows.append({"program": interpreter.name, **own, "MB": found["bytes"] / 1e6})
    said = (
        f"Equal: the interpreter and the library give the same integers for all {len(data)} scenes "
        f"and {NOISE} images of noise."
    )
    return found, rows, said


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The cells of the table."""
    return [[row.get(column) for column in COLUMNS] for row in rows]


def run_all(subject: "Subject", data: "MultitaskSet", report: "Report") -> list["Outputs"]:
    """What a program gives for every scene."""
    found = []
    for done, place in enumerate(data.items, 1):
        found.append(_run(subject, subject.preprocess(place.path)[None]))
        report(f"running the {subject.kind}", done, len(data))
    return found


def require_equal(one: Sequence["Outputs"], other: Sequence["Outputs"]) -> None:
    """`GraphError` unless two programs gave equal integers."""
    for a, b in zip(one, other, strict=True):
        if any(not a[name].equal(b[name]) for name in (CLASSES, BOXES, SCORES, LABELS)):
            raise GraphError(
                "interpreter and library give different integers: this is a defect of iqvit, "
                "please report it with the output of `iqvit bench` on this machine"
            )


def score(
    subject: "Subject",
    exact: "Subject",
    data: "MultitaskSet",
    answers: Mapping[str, Sequence["Outputs"]],
) -> dict[str, Any]:
    """The metrics of `iqvit eval multitask`, of answers that are there already, flat."""
    from iqvit.commands.detecting import detecting
    from iqvit.eval.multitask import evaluate_multitask

    given, real = iter(answers[subject.kind]), iter(answers[exact.kind])
    boxes = detecting(subject.head(DETECTION))
    scores = evaluate_multitask(
        lambda _: next(given),
        data,
        boxes.read,
        numbers=boxes.numbers,
        reference=lambda _: next(real),
        reference_numbers=detecting(exact.head(DETECTION)).numbers,
    )
    metrics = {k: v for k, v in scores.metrics.items() if k not in ("agreement", "seconds")}
    metrics["equal_boxes"] = scores.metrics.get("agreement")
    if scores.maps is not None:
        metrics |= {f"iou.{name}": value for name, value in scores.maps.iou.items()}
    if scores.boxes is not None:
        metrics |= {f"ap.{name}": value for name, value in scores.boxes.ap.items()}
    return metrics


def draw(
    folder: Path,
    subjects: Sequence["Subject"],
    data: "LabelledSet",
    answers: Mapping[str, Sequence["Outputs"]],
    count: int,
) -> None:
    """Truth and the subjects' answers to the first scenes, side by side, as folder/NAME.png."""
    from iqvit.eval.overlay import png
    from iqvit.eval.side_by_side import Answer, side_by_side
    from iqvit.files import write_atomically

    folder.mkdir()
    first = subjects[0]
    box_palette = [first.palette[first.labels.index(name)] for name in first.box_labels]
    for index in range(min(count, len(data))):
        item, image = data.item(index), data.image(index)
        seen = ~item.iscrowd
        shown = [Answer("truth", data.mask(index), item.boxes[seen], item.labels[seen])]
        for subject in subjects:
            shown.append(_answer(subject, answers[subject.kind][index], item.size))
        picture = side_by_side(image, shown, first.palette, first.box_labels, box_palette)
        write_atomically(folder / f"{item.path.stem}.png", png(picture))


def _answer(subject: "Subject", outputs: "Outputs", size: tuple[int, int]) -> Any:
    from iqvit.commands.detecting import detecting
    from iqvit.eval.boxes import in_pixels
    from iqvit.eval.segmentation import resize_nearest
    from iqvit.eval.side_by_side import Answer

    numbers = detecting(subject.head(DETECTION)).numbers
    boxes = outputs[BOXES], outputs[SCORES], outputs[LABELS]
    count = range(len(subject.box_labels))
    found = in_pixels(boxes, size, numbers, subject.name, count).at_least(SHOWN_SCORE)
    classes = resize_nearest(outputs[CLASSES][0], size)
    title = "float" if subject.kind == "float" else "integers"
    return Answer(title, classes, found.corners, found.labels, found.scores)


def _run(subject: "Subject", image: "Tensor") -> "Outputs":
    if subject.outputs is None:
        raise ModelError(f"{subject.name} gives no class map and boxes")
    return subject.outputs(image)
