"""Other toolchains on a segmenter, its images and its cores: mIoU, latency and file size.

How to run it is in README.md beside this file and in --help.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import (
    Calib,
    CalibDir,
    Keep,
    Ours,
    Rows,
    Runs,
    Threads,
    calibrated_shop,
    chosen,
    compare,
    our_jobs,
    peer_job,
    remembered,
    show,
    write_rows,
)
from toolchains import PEERS

from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.eval import reading
from iqvit.commands.options import Seed, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash
from iqvit.commands.subject import Subject, float_subject, load_float
from iqvit.eval.segmentation import evaluate_segmentation
from iqvit.eval.segmentation_data import read_folder

USUAL = (
    "pytorch-float32,onnxruntime-float32,onnxruntime-minmax,onnxruntime-mixed,"
    "onnxruntime-dynamic,openvino-float32,nncf-default,nncf-transformer"
)
COLUMNS = ("peer", "mIoU", "equal_pixels", "images", "params", "macs", "file_bytes")


def segmentation_peers(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As segmenter:FOLDER.")],
    data: Annotated[Path, typer.Option(help="Images and masks, as `iqvit eval segmentation`.")],
    calib_dir: CalibDir,
    class_file: Annotated[Path | None, typer.Option(help="Where not in DATA.")] = None,
    calib: Calib = 32,
    seed: Seed = 0,
    only: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(PEERS)}")] = USUAL,
    ours: Ours = None,
    threads: Threads = "1,2",
    runs: Runs = 40,
    keep: Keep = None,
    json: Rows = None,
) -> None:
    """Makes other toolchains' versions of a float segmenter, scores and times them.

    \b
    Example:
      python benchmarks/segmentation_peers.py segmenter:trained/ --data camvid/ \\
          --class-file benchmarks/camvid.txt --calib-dir camvid/train/images --ours model.iqv

    The calibration images are those of `iqvit quantize --calib CALIB_DIR --images N --seed S`. mIoU
    is on the split `val`, equal_pixels against PyTorch float32, both in percent; every peer takes a
    normalised float32 image and gives the class map, iqvit takes the uint8 image. Latencies are
    medians of one image, all models taking turns.
    """
    require_file(json)
    names, counts = chosen(only), thread_counts(threads)
    torch.set_num_threads(1)
    model = load_float(spec, seed=seed)
    reference = float_subject(model)
    found = read_folder(data, "val", class_file)
    paths = calibration_images(calib_dir, calib, seed)
    with ExitStack() as stack, screen.progress() as report:
        shop = calibrated_shop(model, paths, keep, stack, report)
        known = remembered(reference.scores)

        def rate(subject: Subject) -> dict[str, Any]:
            """mIoU and equality with float."""
            return evaluate_segmentation(
                subject.scores,
                found,
                reference.preprocess,
                reference=known,
                progress=reading(report),
            ).metrics

        jobs = our_jobs(ours, names_hash(calib_dir, paths), stack, report)
        jobs += [peer_job(name, PEERS[name], shop) for name in names]
        rows = compare(jobs, rate, counts, runs, report, "mIoU")
    write_rows(json, spec, seed, rows)
    show(rows, (*COLUMNS, *(f"latency_ms@{count}" for count in counts)))


if __name__ == "__main__":
    typer.run(guarded(segmentation_peers))
