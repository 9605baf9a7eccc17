"""What `iqvit report` shows beside its tables: nodes, operators, and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.detecting import detecting
from iqvit.commands.predict import best_classes
from iqvit.commands.predict_boxes import DEFAULT_SCORE
from iqvit.commands.predict_maps import names_and_colours
from iqvit.commands.report_data import Item, Material
from iqvit.commands.segmenting import segmenting
from iqvit.commands.subject import (
    BOXES,
    CLASSES,
    CLASSIFICATION,
    DETECTION,
    LABELS,
    MULTITASK,
    OUTPUTS,
    SCORES,
    SEGMENTATION,
    Subject,
)

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.commands.report_models import Models
    from iqvit.commands.screen import Report as Progress
    from iqvit.eval.boxes import Found
    from iqvit.eval.report import Panel, Strip
    from iqvit.eval.report_pictures import Seen

CLASS_PICTURES = 12
"""Of a classifier, whose pictures are small."""
PICTURES = 3


def compare_nodes(
    models: "Models", images: "Tensor", task: str, progress: "Progress"
) -> tuple[dict[str, Any], ...]:
    """How far every node of the calibrated program is from its float node."""
    from iqvit.compare import compare

    same = task in OUTPUTS
    found = compare(models.canonical, models.graph, images, same_choices=same, progress=progress)
    return tuple(dict(vars(row)) for row in found.rows)


def profile_operators(
    folder: Path, runs: int, progress: "Progress"
) -> tuple[tuple[tuple[str, float], ...], float]:
    """Milliseconds of one run by what the functions of a library compute, and those between."""
    from iqvit.tvm_backend.profile import profile

    found = profile(folder, runs, lambda done, total: progress("profiling", done, total))
    sums: dict[str, float] = {}
    for row in found.rows:
        name = row.name if row.about is None else row.about.operators
        sums[name] = sums.get(name, 0.0) + row.ms
    return tuple(sums.items()), max(0.0, found.between_ms)


def pictures(
    real: Subject, integers: Subject, material: Material, count: int | None, progress: "Progress"
) -> "tuple[Strip, ...]":
    """So many of the scored images, evenly spaced, as they are and as both models see them."""
    from iqvit.eval.evaluate import spread
    from iqvit.eval.report import Strip

    usual = CLASS_PICTURES if real.task == CLASSIFICATION else PICTURES
    wanted = usual if count is None else count
    chosen = spread(material.items, wanted) if wanted > 0 else []
    strips = []
    for done, item in enumerate(chosen, 1):
        name = f"{done:02d}_{item.path.stem}"
        if real.task == CLASSIFICATION:
            strips.append(Strip(name, (_classified(item, real, integers),)))
        else:
            strips.append(Strip(name, tuple(_seen(item, real, integers, material))))
        progress("drawing", done, len(chosen))
    return tuple(strips)


def legend(
    subject: Subject,
) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """The classes of class maps with their colours; empty of models without."""
    if subject.task not in (SEGMENTATION, MULTITASK):
        return ()
    names, palette = names_and_colours(subject, 0)
    return tuple(zip(names, palette, strict=True))


def _classified(item: Item, real: Subject, integers: Subject) -> "Panel":
    from iqvit.eval.report import Panel
    from iqvit.eval.report_pictures import as_picture, jpeg

    pixels = real.preprocess(item.path)
    found = [subject.scores(pixels[None])[0] for subject in (real, integers)]
    best = [best_classes(scores, 1)[0] for scores in found]
    names = [real.label(index) or f"class {index}" for index in best]
    mark = "" if best[0] == best[1] else " (differs)"
    caption = f"float: {names[0]}\nintegers: {names[1]}{mark}"
    return Panel(item.label, jpeg(as_picture(pixels)), caption)


def _seen(item: Item, real: Subject, integers: Subject, material: Material) -> "list[Panel]":
    from torchvision.transforms.v2.functional import pil_to_tensor

    from iqvit.eval.preprocess import read_image
    from iqvit.eval.report import FLOAT_ROW
    from iqvit.eval.report_pictures import panel

    image = pil_to_tensor(read_image(item.path))
    _, palette = names_and_colours(real, 0)
    sides: dict[str, Seen] = {"annotated": item.truth()}
    for title, subject in ((FLOAT_ROW, real), ("integers", integers)):
        sides[title] = _look(subject, item.path, material, (image.shape[1], image.shape[2]))
    return [panel(title, image, seen, palette, material.box_names) for title, seen in sides.items()]


def _look(subject: Subject, path: Path, material: Material, size: tuple[int, int]) -> "Seen":
    """What a model sees in an image, with detections of a score of at least `DEFAULT_SCORE`."""
    from iqvit.eval.report_pictures import Seen

    if subject.task == SEGMENTATION:
        applied = segmenting(subject, None)
        return Seen(applied.predict(applied.read(path)[None])[0])
    boxes = detecting(subject.head(DETECTION))
    pixels = boxes.read(path)[None]
    run: Callable[[Tensor], Any] | None = subject.outputs
    found = {} if run is None else run(pixels)
    output = found[BOXES], found[SCORES], found[LABELS]
    class_map = found[CLASSES][0] if subject.task == MULTITASK else None
    return Seen.of(class_map, _in_pixels(output, size, boxes.numbers, path, material.class_of))


def _in_pixels(
    output: Any, size: tuple[int, int], numbers: Any, path: Path, class_of: Sequence[int] | None
) -> "Found":
    from iqvit.eval.boxes import in_pixels

    return in_pixels(output, size, numbers, str(path), class_of or ()).at_least(DEFAULT_SCORE)
