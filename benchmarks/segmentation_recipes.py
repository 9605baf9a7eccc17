"""The mIoU of recipes, side by side: one table row for each TOML file of a folder.

    python benchmarks/segmentation_recipes.py segmenter:trained/ --data camvid/ \\
        --class-file benchmarks/camvid.txt --calib-dir camvid/train/images --images 32

Every row is calibrated on the same images, compiled for this CPU and scored on the split `val`.
"""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from recipes import rows

from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.commands.outputs import write_metrics
from iqvit.commands.quantize import calibration_images
from iqvit.eval.bench import machine
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.eval.segmentation import evaluate_segmentation
from iqvit.eval.segmentation_data import read_folder
from iqvit.models.spec import load_model


def main(
    spec: str,
    data: Annotated[Path, typer.Option(help="Images and masks, as `iqvit eval segmentation`.")],
    calib_dir: Annotated[Path, typer.Option(help="Images to calibrate on.")],
    class_file: Annotated[Path | None, typer.Option(help="Where not in DATA.")] = None,
    images: Annotated[int, typer.Option(help="How many calibrate.")] = 32,
    seed: int = 0,
    only: Annotated[str, typer.Option(help="Recipes, comma-separated; all of the folder.")] = "",
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Calibrate, compile and score every recipe; prints Markdown rows as they come."""
    model = load_model(spec)
    preprocess = Preprocess.from_dict(model.preprocessing)
    dataset = read_folder(data, "val", class_file)
    calibration = load_images(calibration_images(calib_dir, images, seed), preprocess)
    captured = capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    maps = {}

    def reference(pixels):
        # The float class maps are the same for every recipe.
        key = hash(pixels.numpy().tobytes())
        if key not in maps:
            maps[key] = model.scores(pixels)
        return maps[key]

    def score(library, _graph):
        found = evaluate_segmentation(
            lambda x: library(x)["classes"], dataset, preprocess, reference=reference
        )
        return found.metrics

    print(f"{date.today()}, {machine()['cpu']}, {images} calibration images, {len(dataset)} scored")
    print("| recipe | mIoU | float mIoU | equal pixels | seconds to calibrate |")
    print("|---|---|---|---|---|")
    columns = ("mIoU", "float_mIoU", "equal_pixels")
    write_metrics(json, rows(canonicalize(captured), calibration, only, columns, score))


if __name__ == "__main__":
    typer.run(main)
