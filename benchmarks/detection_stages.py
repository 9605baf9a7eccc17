"""Where a detector in integers loses accuracy, stage by stage, and whether its library agrees.

    python benchmarks/detection_stages.py --data coco/val2017 --calib-dir coco/train2017
    python benchmarks/detection_stages.py rtdetr:trained/ --data bccd/val --calib-dir bccd/train

Without a SPEC it is transformers' RT-DETRv2-R18 with random weights (`rtdetr_r18.py`). The float
model goes on with the queries that the program has chosen, so that equal queries are compared: SQNR
of every stage, and how far the corners of boxes are apart in pixels of the model's input. Every
output of the compiled library must equal the interpreter's; the exit code is 1 where one does not.
"""

import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rtdetr_r18 import OUTPUTS, PREPROCESSING, SIZE, rtdetr_r18
from torch import Tensor
from torchvision.ops import box_convert

from iqvit.calibration.quantize import quantize_canonical
from iqvit.calibration.recipe import Recipe, load_recipe
from iqvit.canonical import CanonicalModel
from iqvit.canonicalize import canonicalize
from iqvit.capture import CapturedModel, capture
from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.quantize import calibration_images
from iqvit.compare import Comparison, compare
from iqvit.eval.bench import machine
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.intgraph import IntGraph
from iqvit.models.spec import load_model
from iqvit.passes.split_branches import split_branches
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load

STAGES = {
    "backbone, stride 8": ("*encoder_stages_1_*", "*backbone_stages_1_*", "*backbone_levels_0*"),
    "backbone, stride 16": ("*encoder_stages_2_*", "*backbone_stages_2_*", "*backbone_levels_1*"),
    "backbone, stride 32": ("*encoder_stages_3_*", "*backbone_stages_3_*", "*backbone_levels_2*"),
    "encoder, stride 8": ("*decoder_input_proj_0_*",),
    "encoder, stride 16": ("*decoder_input_proj_1_*",),
    "encoder, stride 32": ("*decoder_input_proj_2_*",),
    "tokens": ("*enc_output*layer_norm",),
    "scores of tokens": ("*amax",),
    "scores of classes": ("*enc_score_head*",),
}
"""Globs of the nodes of a stage, of which the last counts; ours and transformers' names."""
BOXES = ("pred_boxes", "boxes")


def detection_stages(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As rtdetr:FOLDER.")] = "",
    *,
    data: Annotated[Path, typer.Option(help="A folder of images to compare on.")],
    calib_dir: Annotated[Path, typer.Option(help="A folder of images to calibrate on.")],
    images: Annotated[int, typer.Option(min=1, help="How many are compared.")] = 20,
    calib: Annotated[int, typer.Option(min=1, help="How many calibrate.")] = 8,
    size: Annotated[int, typer.Option(help="Of the random model's input, in pixels.")] = SIZE[0],
    method: Annotated[str, typer.Option(help="Its sampling: default or discrete.")] = "default",
    recipe: Annotated[Path | None, typer.Option(help="Settings; `iqvit recipe`.")] = None,
    join: Annotated[
        bool, typer.Option("--join-branches", help="Joined values keep one scale.")
    ] = False,
    target: Annotated[str, typer.Option(help="Empty: no library is compiled.")] = "host",
    threads: int = 1,
    seed: int = 0,
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Calibrates, compiles and compares; prints a row for every stage."""
    require_file(json)
    settings = Recipe() if recipe is None else load_recipe(recipe)
    captured, calibration, shown = _inputs(spec, data, calib_dir, images, calib, size, method, seed)
    model = canonicalize(captured, without=(split_branches,) if join else ())
    with screen.progress() as report, tempfile.TemporaryDirectory() as folder:
        graph = quantize_canonical(model, calibration, settings, progress=report)
        library = None
        if target:
            artifact = compile_library(graph, Path(folder) / "artifact", target)
            library = load(artifact, threads=threads)
        errors: list[Tensor] = []
        unequal = 0

        def outputs(exact: dict[str, Tensor], integers: dict[str, Tensor]) -> None:
            nonlocal unequal
            errors.append(box_errors(model, graph, exact, integers))
            if library is not None:
                found = library(shown[len(errors) - 1][None])
                unequal += any(not torch.equal(found[n], integers[n]) for n in integers)

        compared = compare(
            model, graph, shown, same_choices=True, on_outputs=outputs, progress=report
        )
    found = metrics(compared, torch.cat(errors))
    if library is not None:
        found |= {f"unequal@{target}@{threads}": unequal}
    write_metrics(json, {**machine(), "spec": spec or "r18", "recipe": str(recipe or ""), **found})
    rows = [(name, value) for name, value in found.items()]
    screen.table(("stage", "value"), rows)
    sys.exit(1 if unequal else 0)


def _inputs(
    spec: str,
    data: Path,
    calib_dir: Path,
    images: int,
    calib: int,
    size: int,
    method: str,
    seed: int,
) -> tuple[CapturedModel, Tensor, Tensor]:
    """The captured model, images to calibrate on and images to compare on, uint8 [N, 3, H, W]."""
    made = None if not spec else load_model(spec, seed=seed)
    sides = {"size": [size, size], "resize": [size, size]}
    read = Preprocess.from_dict(made.preprocessing if made else PREPROCESSING | sides)
    calibration = load_images(calibration_images(calib_dir, calib, seed), read)
    shown = load_images(calibration_images(data, images, seed), read)
    if made is not None:
        captured = capture(made.module, made.input_shape, mean=made.mean, std=made.std)
    else:
        module = rtdetr_r18(calibration[:4], method, seed)
        shape = (1, 3, size, size)
        captured = capture(module, shape, mean=(0.0,) * 3, std=(1.0,) * 3, outputs=OUTPUTS)
    return captured, calibration, shown


def box_errors(
    model: CanonicalModel, graph: IntGraph, exact: dict[str, Tensor], integers: dict[str, Tensor]
) -> Tensor:
    """How far each coordinate of the corners of all boxes is off, in pixels; float64, flat."""
    name = next(name for name in BOXES if name in integers)
    qparams = graph[graph.outputs[name]].qparams
    if qparams is None:
        raise RuntimeError("boxes without a scale")
    height, width = model.input_shape[2:]
    sides = torch.tensor([width, height, width, height], dtype=torch.float64)
    corners = [
        box_convert(boxes.double() * sides, "cxcywh", "xyxy")
        for boxes in (exact[name], qparams.dequantize(integers[name]))
    ]
    return (corners[0] - corners[1]).abs().flatten()


def metrics(compared: Comparison, errors: Tensor) -> dict[str, Any]:
    """SQNR in dB of stages and outputs, and the errors of boxes."""
    found: dict[str, Any] = {"images": compared.images}
    rows = compared.rows

    def last(chosen: Callable[[str], bool]) -> float | None:
        return next((row.sqnr_db for row in reversed(rows) if chosen(row.origin)), None)

    for stage, globs in STAGES.items():
        value = last(lambda name, globs=globs: any(fnmatchcase(name, glob) for glob in globs))
        found |= {} if value is None else {f"sqnr_db@{stage}": value}
    for layer in range(64):
        value = last(lambda name, part=f"decoder_layers_{layer}_": part in name)
        if value is None:
            break
        found[f"sqnr_db@queries, layer {layer + 1}"] = value
    found |= {f"sqnr_db@{name}": value for name, value in compared.outputs.items()}
    found["sqnr_db@lowest"] = compared.worst(1)[0].sqnr_db
    found["lowest_node"] = compared.worst(1)[0].node
    found["box_error_px_mean"] = float(errors.mean())
    found["box_error_px_99"] = float(errors.quantile(0.99)) if errors.numel() < 1 << 24 else None
    found["box_error_px_max"] = float(errors.max())
    return found


if __name__ == "__main__":
    typer.run(guarded(detection_stages))
