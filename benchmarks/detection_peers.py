"""Other toolchains on a detector, its images and its cores: AP, latency, size, what stays in float.

How to run it is in README.md beside this file and in --help.
"""

import functools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import (
    Calib,
    CalibDir,
    Job,
    Keep,
    Ours,
    Rate,
    Row,
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
from executed import eager_macs, in_float
from mixed_detector import MIXED, Mixed, mixed_job
from runtimes import OPENVINO
from toolchains import PEERS, Peer, all_images, nncf_int8, ort_static, steps_of
from workshop import Workshop

from iqvit.calibration.recipe import Recipe, load_recipe
from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.detecting import detecting, match_classes
from iqvit.commands.eval import reading
from iqvit.commands.options import Classes, InputSize, Seed, Weights, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash
from iqvit.commands.subject import DETECTION, Subject, float_subject, load_float
from iqvit.errors import ModelError
from iqvit.eval.coco_data import CocoSet, read_coco
from iqvit.eval.detection import evaluate_detection

DECODER = r"^/(?!([\w.]+/)*(backbone|encoder))"
"""Names of the exported operators that are neither in the backbone nor in the encoder."""
DECODER_FLOAT = {
    "onnxruntime-decoder-float": Peer(
        functools.partial(ort_static, "MinMax", False, False, leave=DECODER),
        "static QDQ u8s8 per channel, MinMax; the decoder float",
        all_images,
    ),
    "nncf-decoder-float": Peer(
        functools.partial(nncf_int8, False, leave=DECODER),
        "OpenVINO int8, default preset; the decoder float",
        all_images,
        OPENVINO,
    ),
}
FILES = PEERS | DECODER_FLOAT
KNOWN = [*FILES, *MIXED]
USUAL = (
    "pytorch-float32,onnxruntime-float32,onnxruntime-minmax,onnxruntime-mixed,"
    "onnxruntime-decoder-float,onnxruntime-dynamic,openvino-float32,nncf-default,"
    "nncf-transformer,nncf-decoder-float,iqvit-decoder-float,iqvit-decoder-float-pytorch"
)
SCORES = ("mAP", "AP50", "AP75", "agreement", "images")
COSTS = ("params", "macs", "file_bytes", "float_products", "float_macs_share", "float_ops")
TIMES = ("latency_ms", "latency_p90_ms", "fps")
NO_FLOAT = {"float_products": 0, "float_macs_share": 0.0, "float_ops": 0}
"""Of iqvit's own libraries: a program with any float does not compile."""


def counted(job: Job, peer: Peer, shop: Workshop) -> Job:
    """The same job, which also says what its runtime leaves in float."""

    def make() -> Subject:
        subject = job.make()
        if peer.make is None:
            image = torch.from_numpy(next(shop.inputs(1)))
            facts: Row = {"macs": eager_macs(shop.model.module, image), "float_macs_share": 100.0}
        else:
            facts = in_float(steps_of(peer, shop))
        return replace(subject, facts=subject.facts | facts)

    return Job(job.row, make)


def rating(data: CocoSet, model: Subject, limit: int | None, report: screen.Report) -> Rate:
    """AP and agreement with float, and AP of each class as `ap.NAME`."""
    reference = detecting(model)
    known = remembered(reference.predict)
    class_of = match_classes(model, data.classes, str(data.annotations))

    def rate(subject: Subject) -> dict[str, Any]:
        applied = detecting(subject)
        found = evaluate_detection(
            applied.predict,
            data,
            reference.read,
            numbers=applied.numbers,
            class_of=class_of,
            reference=known,
            limit=limit,
            progress=reading(report),
        )
        return {**found.metrics, **{f"ap.{name}": value for name, value in found.ap.items()}}

    return rate


def detection_peers(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="As rtdetr:FOLDER.")],
    calib_dir: CalibDir,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="As `iqvit eval coco`; none: no AP.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Of DATA.")] = "val",
    supercategories: Annotated[
        bool, typer.Option("--supercategories", help="As `iqvit eval coco`.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score so many, evenly spaced.")
    ] = None,
    weights: Weights = None,
    input_size: InputSize = None,
    classes: Classes = None,
    calib: Calib = 32,
    few: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of these, for Entropy and Percentile."),
    ] = None,
    seed: Seed = 0,
    only: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(KNOWN)}")] = USUAL,
    ours: Ours = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Of iqvit-decoder-float's integers.")
    ] = None,
    threads: Threads = "1,2",
    runs: Runs = 30,
    no_time: Annotated[bool, typer.Option("--no-time", help="No latency.")] = False,
    keep: Keep = None,
    json: Rows = None,
) -> None:
    """Makes other toolchains' versions of a float detector, scores and times them.

    \b
    Example:
      python benchmarks/detection_peers.py rtdetr:trained/ --data cells/ --calib-dir cells/train \\
          --ours model.iqv

    The calibration images are those of `iqvit quantize --calib CALIB_DIR --images N --seed S`. The
    scores are those of `iqvit eval coco`, agreement is with PyTorch float32. Every peer takes a
    normalised float32 image and gives boxes, scores and labels, iqvit takes the uint8 image.
    Latencies are medians and 90th percentiles of one image, all models taking turns.
    float_products, float_macs_share (percent) and float_ops: matrix products and convolutions,
    their multiply-accumulates, and other operators that the runtime runs in float; which ones is
    in --json. `decoder-float`: all behind the encoder is left in float.
    """
    require_file(json)
    names, counts = chosen(only, dict.fromkeys(KNOWN)), thread_counts(threads)
    torch.set_num_threads(1)
    settings = Recipe() if recipe is None else load_recipe(recipe)
    model = load_float(spec, weights, input_size, classes, seed)
    if model.task != DETECTION:
        raise ModelError(f"{spec} is a model for {model.task}, where one for detection is needed")
    paths = calibration_images(calib_dir, calib, seed)
    found = None if data is None else read_coco(data, split, supercategories=supercategories)
    with ExitStack() as stack, screen.progress() as report:
        rate = None if found is None else rating(found, float_subject(model), images, report)
        shop = calibrated_shop(model, paths, keep, stack, report, few)
        mixed = Mixed(shop, settings, stack, report)
        jobs = our_jobs(ours, names_hash(calib_dir, paths), stack, report)
        for job in jobs:
            job.row.update(NO_FLOAT)
        for name in names:
            if name in MIXED:
                jobs.append(mixed_job(name, mixed))
            else:
                jobs.append(counted(peer_job(name, FILES[name], shop), FILES[name], shop))
        rows = compare(jobs, rate, counts, 0 if no_time else runs, report, "mAP")
    write_rows(json, spec, seed, rows)
    scores = () if found is None else SCORES
    times = () if no_time else tuple(f"{key}@{c}" for c in counts for key in TIMES)
    show(rows, ("peer", *scores, *COSTS, *times))


if __name__ == "__main__":
    typer.run(guarded(detection_peers))
