"""Other toolchains on a segmenter, its images and its cores: mIoU, latency and file size.

How to run it is in README.md beside this file and in --help.
"""

import functools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peers import (
    add_times,
    chosen,
    key_of,
    measured,
    our_row,
    peer_row,
    remembered,
    versions,
    write_json,
)
from toolchains import PEERS, Workshop, open_peer

from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.bench import open_for_timing
from iqvit.commands.eval import reading
from iqvit.commands.options import Seed, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash, read_images
from iqvit.commands.subject import Subject, float_subject, load_float
from iqvit.eval.bench import machine
from iqvit.eval.segmentation import evaluate_segmentation
from iqvit.eval.segmentation_data import SegmentationSet, read_folder

USUAL = (
    "pytorch-float32,onnxruntime-float32,onnxruntime-minmax,onnxruntime-mixed,"
    "onnxruntime-dynamic,openvino-float32,nncf-default,nncf-transformer"
)
COLUMNS = ("peer", "mIoU", "equal_pixels", "images", "params", "macs", "file_bytes")


def rate(
    scores: Any, *, data: SegmentationSet, reference: Subject, known: Any, report: Any, **_: float
) -> dict[str, Any]:
    """mIoU and equality with float of a function from pixels to class maps."""
    return evaluate_segmentation(
        scores, data, reference.preprocess, reference=known, progress=reading(report)
    ).metrics


def segmentation_peers(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As segmenter:FOLDER.")],
    data: Annotated[Path, typer.Option(help="Images and masks, as `iqvit eval segmentation`.")],
    calib_dir: Annotated[Path, typer.Option(metavar="DIR", help="Images to calibrate on.")],
    class_file: Annotated[Path | None, typer.Option(help="Where not in DATA.")] = None,
    calib: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them.")] = 32,
    seed: Seed = 0,
    only: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(PEERS)}")] = USUAL,
    ours: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="An .iqv or artifact of iqvit itself; repeatable."),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,N", help="Threads to time at.")] = "1,2",
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs each.")] = 40,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what is made; what is there is not made again."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows.")] = None,
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
        calibrating, _ = read_images(paths, model, False, report)
        kept = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shop = Workshop(model, calibrating, calib, kept / key_of(model, calibrating, calib))
        score = functools.partial(
            rate,
            data=found,
            reference=reference,
            known=remembered(reference.scores),
            report=report,
        )
        jobs = [
            (
                our_row(path, names_hash(calib_dir, paths)),
                functools.partial(open_for_timing, path, stack, report, (None, None, None)),
            )
            for path in ours or ()
        ]
        jobs += [(peer_row(n, shop), functools.partial(open_peer, n, shop)) for n in names]
        subjects: dict[str, Subject] = {}
        for row, make in jobs:
            subject = measured(row, make, score, counts)
            if row["peer"] == "pytorch-float32":
                row["file_bytes"] = sum(t.nbytes for t in model.module.state_dict().values())
            subjects |= {} if subject is None else {row["peer"]: subject}
            screen.note(f"{row['peer']}: {row.get('error', row.get('mIoU'))}")
        rows = [row for row, _ in jobs]
        if subjects:
            add_times(rows, subjects, counts, runs, report)
    write_json(json, {"spec": spec, "seed": seed, **machine(), **versions()}, rows)
    columns = (*COLUMNS, *(f"latency_ms@{count}" for count in counts))
    screen.table((*columns, "note"), [line(row, columns) for row in rows])


def line(row: dict[str, Any], columns: tuple[str, ...]) -> list[Any]:
    """The cells of a row, rounded, and its note."""
    cells = [row.get(column) for column in columns]
    note = f"FAILED: {row['error']}" if "error" in row else row["note"]
    return [*(round(c, 2) if isinstance(c, float) else c for c in cells), note]


if __name__ == "__main__":
    typer.run(guarded(segmentation_peers))
