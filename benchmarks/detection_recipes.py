"""Where a detector in integers loses accuracy: one table row for each recipe of a folder.

    python benchmarks/detection_recipes.py rtdetr:trained/ --data bccd/ --calib-dir bccd/train

Every row is calibrated on the same images, compiled for this CPU and scored on a split of COCO or
data in its format: mAP; of the detections of both sides with a score of at least 0.5, the share
that are the same as float's; and, for the same queries, how far the corners of the boxes are from
float's, in pixels of the model's input.
"""

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from detection_stages import box_errors
from recipes import RECIPES, rows
from torch import Tensor

from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.cli import guarded
from iqvit.commands.detecting import detecting, match_classes
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.quantize import calibration_images
from iqvit.commands.subject import BOXES, LABELS, SCORES, float_subject
from iqvit.compare import compare
from iqvit.eval.bench import machine
from iqvit.eval.boxes import BoxFormat
from iqvit.eval.coco_data import read_coco
from iqvit.eval.detection import evaluate_detection
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.intgraph import IntGraph
from iqvit.models.spec import load_model
from iqvit.tvm_backend.runtime import Artifact

COLUMNS = ("mAP", "float_mAP", "agreement", "box_px_mean", "box_px_99", "box_px_max", "boxes_db")


def detection_recipes(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As rtdetr:FOLDER.")],
    data: Annotated[Path, typer.Option(help="As `iqvit eval coco`.")],
    calib_dir: Annotated[Path, typer.Option(help="Images to calibrate on.")],
    split: str = "val",
    supercategories: Annotated[bool, typer.Option("--supercategories")] = False,
    limit: Annotated[int | None, typer.Option(help="Score so many, evenly spaced.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many calibrate.")] = 32,
    compared: Annotated[int, typer.Option(min=1, help="Images for the errors of boxes.")] = 8,
    weights: Path | None = None,
    seed: int = 0,
    recipes: Annotated[Path, typer.Option(help="A folder of TOML files.")] = RECIPES / "detection",
    only: Annotated[str, typer.Option(help="Recipes, comma-separated; all of the folder.")] = "",
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Calibrate, compile and score every recipe; prints Markdown rows as they come."""
    require_file(json)
    model = load_model(spec, weights=weights, seed=seed)
    preprocess = Preprocess.from_dict(model.preprocessing)
    dataset = read_coco(data, split, supercategories=supercategories)
    calibration = load_images(calibration_images(calib_dir, images, seed), preprocess)
    shown = load_images([item.path for item in dataset.items[:compared]], preprocess)
    canonical = canonicalize(
        capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    )
    subject = float_subject(model)
    known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    class_of = match_classes(subject, dataset.classes, str(dataset.annotations))

    def reference(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The float detections are the same for every recipe.
        key = hash(pixels.numpy().tobytes())
        if key not in known:
            known[key] = detecting(subject).predict(pixels)
        return known[key]

    def score(library: Artifact, graph: IntGraph) -> dict[str, Any]:
        def predict(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found = library(pixels)
            return found[BOXES], found[SCORES], found[LABELS]

        found = evaluate_detection(
            predict,
            dataset,
            preprocess,
            numbers=BoxFormat(*scale_of(graph, BOXES), *scale_of(graph, SCORES)),
            class_of=class_of,
            reference=reference,
            limit=limit,
        )
        errors: list[Tensor] = []
        differences = compare(
            canonical,
            graph,
            shown,
            same_choices=True,
            on_outputs=lambda *sides: errors.append(box_errors(canonical, graph, *sides)),
        )
        pixels = torch.cat(errors)
        return found.metrics | {
            "box_px_mean": float(pixels.mean()),
            "box_px_99": float(pixels.quantile(0.99)),
            "box_px_max": float(pixels.max()),
            "boxes_db": differences.outputs[BOXES],
        }

    scored = min(limit or len(dataset), len(dataset))
    print(f"{date.today()}, {machine()['cpu']}, {images} calibration images, {scored} scored")
    print(f"| recipe | {' | '.join(COLUMNS)} | seconds to calibrate |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    write_metrics(json, rows(canonical, calibration, only, COLUMNS, score, recipes))


def scale_of(graph: IntGraph, name: str) -> tuple[float, float]:
    """Scale and zero point of an output."""
    qparams = graph[graph.outputs[name]].qparams
    if qparams is None:
        raise RuntimeError(f"the output {name} has no scale")
    return float(qparams.scale), float(qparams.zero_point)


if __name__ == "__main__":
    typer.run(guarded(detection_recipes))
