"""Other 8-bit toolchains on the float model, images and cores of iqvit: accuracy and latency.

How to run it is in README.md beside this file and in --help.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from comparing import (
    Calib,
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
from iqvit.commands.eval import known_classes, reading
from iqvit.commands.options import Seed, Weights, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash
from iqvit.commands.subject import Subject, float_subject, load_float
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import read_imagenet

COLUMNS = ("peer", "top1", "agreement", "sqnr_db", "images", "calibration_images")


def peers(
    data: Annotated[
        Path, typer.Option(help="Images, laid out as for `iqvit eval imagenet --data`.")
    ],
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="The float model, as `iqvit quantize` names it.")
    ] = "timm:vit_tiny_patch16_224",
    weights: Weights = None,
    calib: Calib = 128,
    few: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Of these, for ONNX Runtime's Entropy and Percentile: they hold every activation "
            "of every image in memory.",
        ),
    ] = 32,
    seed: Seed = 0,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(PEERS)}; '' for none.")
    ] = None,
    ours: Ours = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score so many, evenly spaced.")
    ] = None,
    threads: Threads = "1,2",
    runs: Runs = 50,
    no_time: Annotated[bool, typer.Option("--no-time", help="Accuracy only.")] = False,
    time_only: Annotated[bool, typer.Option("--time-only", help="Latency only.")] = False,
    keep: Keep = None,
    json: Rows = None,
) -> None:
    """Makes other toolchains' 8-bit versions of a float model, scores and times them.

    \b
    Example:
      python benchmarks/peers.py --weights W.safetensors --data DIR --ours model.iqv

    The calibration images are those of `iqvit quantize --calib DATA --images N --seed S`; they are
    left out of the score as by `iqvit eval imagenet --exclude-calib N --seed S`. top1 and agreement
    (equal predictions) are in percent; sqnr_db is of the scores against PyTorch float32, in which
    all are scored on one thread; latency_ms is the median of one image, all models taking turns.
    A peer that is not installed or fails has the reason in its row.
    """
    require_file(json)
    names, counts = chosen(only), thread_counts(threads)
    torch.set_num_threads(1)
    model = load_float(spec, weights, seed=seed)
    excluded, found = calibration_images(data, calib, seed), read_imagenet(data)
    without(found.items, excluded)  # none left to score is an error before the work, not after it
    with ExitStack() as stack, screen.progress() as report:
        shop = calibrated_shop(model, excluded, keep, stack, report, few)
        preprocess, known = float_subject(model).preprocess, remembered(model.scores)

        def rate(subject: Subject) -> dict[str, Any]:
            return evaluate(
                subject.scores,
                found.items,
                preprocess,
                reference=known,
                scale=subject.scale,
                zero_point=subject.zero_point,
                classes=known_classes(found),
                exclude=excluded,
                limit=images,
                progress=reading(report),
            )

        jobs = our_jobs(ours, names_hash(data, excluded), stack, report)
        jobs += [peer_job(name, PEERS[name], shop) for name in names]
        rate_all = None if time_only else rate
        rows = compare(jobs, rate_all, counts, 0 if no_time else runs, report, "top1")
    write_rows(json, spec, seed, rows)
    show(rows, (*COLUMNS, *(() if no_time else (f"latency_ms@{count}" for count in counts))))


if __name__ == "__main__":
    typer.run(guarded(peers))
