"""Other 8-bit toolchains on the float model, images and cores of iqvit: accuracy and latency.

How to run it is in README.md beside this file and in --help.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from toolchains import PEERS, Workshop, open_peer
from torch import Tensor

from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.bench import open_for_timing
from iqvit.commands.eval import known_classes, reading
from iqvit.commands.options import Seed, Weights, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash, read_images
from iqvit.commands.screen import Report
from iqvit.commands.subject import Subject, float_subject, load_float
from iqvit.errors import DataError, IqvitError
from iqvit.eval.bench import bench, machine
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import read_imagenet
from iqvit.files import write_atomically
from iqvit.models.float_model import FloatModel

LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
"""Their versions decide what is made, and are in the result."""


def peer_row(name: str, shop: Workshop) -> dict[str, Any]:
    """What is known of a peer before it is made."""
    peer = PEERS[name]
    return {"peer": name, "note": peer.note, "calibration_images": peer.images(shop)}


def our_row(path: str, expected: str) -> dict[str, Any]:
    """The same of one of iqvit's; an .iqv tells whether the images left out calibrated it."""
    if Path(path).is_dir():
        return {"peer": path, "note": "iqvit; which images calibrated an artifact is not known"}
    if not Path(path).is_file():
        raise DataError(f"--ours {path}: there is no such .iqv or artifact folder")
    from iqvit.serialize import load

    meta = load(Path(path)).meta
    same = meta.get("images_hash") == expected
    note = "iqvit" if same else "iqvit; NOT known to be calibrated on the images left out"
    size = Path(path).stat().st_size
    images = meta.get("images")
    return {"peer": path, "note": note, "calibration_images": images, "file_bytes": size}


def remembered(scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`scores`, computed once for each batch of images."""
    known: dict[bytes, Tensor] = {}

    def recall(images: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in known:
            known[key] = scores(images)
        return known[key]

    return recall


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters and quantisers say off the results."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def measured(
    row: dict[str, Any],
    make: Callable[[], Subject],
    rate: Callable[..., dict[str, Any]] | None,
    threads: Sequence[int],
) -> Subject | None:
    """Adds what a peer reaches to its row; None, and the reason in the row, where it fails."""
    begun = time.perf_counter()
    try:
        with quiet():
            subject = make()
            row["make_seconds"] = time.perf_counter() - begun
            row |= subject.facts
            for count in (*threads, 1):  # what cannot run is to fail here, not between timings
                subject.set_threads(count)
                subject.call(subject.example())
            if rate is not None:
                row |= rate(subject.scores, scale=subject.scale, zero_point=subject.zero_point)
    except IqvitError:
        raise
    except Exception as error:  # noqa: BLE001  (other people's code: that it fails is the result)
        row["error"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return None
    return subject


def add_times(
    rows: Sequence[dict[str, Any]],
    subjects: dict[str, Subject],
    threads: Sequence[int],
    runs: int,
    report: Report,
) -> None:
    """Adds `latency_ms@THREADS` and its like to the rows; all take turns."""
    by_name = {row["peer"]: row for row in rows}
    for timed in bench(
        {name: subject.call for name, subject in subjects.items()},
        lambda name: subjects[name].example(),
        threads=threads,
        runs=runs,
        set_threads={name: subject.set_threads for name, subject in subjects.items()},
        progress=lambda done, total: report("timing", done, total),
    ):
        for key in ("latency_ms", "latency_p90_ms", "latency_min_ms"):
            by_name[timed["model"]][f"{key}@{timed['threads']}"] = timed[key]


def versions() -> dict[str, str]:
    """Of the libraries that are compared, as far as they are installed."""
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {f"version_{name}": found[name] for name in LIBRARIES if name in found}


def key_of(model: FloatModel, images: Tensor, few: int) -> str:
    """Names what is made: another model, other images or other versions are another folder."""
    digest = hashlib.sha256(f"{model.name} {few} {sorted(versions().items())}".encode())
    digest.update(images.numpy().tobytes())
    for name, tensor in model.module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def chosen(text: str | None) -> list[str]:
    """The peers of `--only`; IqvitError for one that is not known."""
    names = list(PEERS) if text is None else list(dict.fromkeys(filter(None, text.split(","))))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise IqvitError(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return names


def write_json(path: Path | None, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """The rows and what they were taken on; null for what is no finite number."""
    if path is None:
        return

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    lines = [{key: plain(value) for key, value in row.items()} for row in rows]
    text = json.dumps({"machine": about, "rows": lines}, indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def show(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> None:
    """One line a peer; numbers rounded."""
    scores = ("top1", "agreement", "sqnr_db", "images", "calibration_images")
    columns = ("peer", *scores, *(f"latency_ms@{count}" for count in threads))
    lines = []
    for row in rows:
        cells = [row.get(column) for column in columns]
        note = f"FAILED: {row['error']}" if "error" in row else row["note"]
        lines.append([*(round(c, 2) if isinstance(c, float) else c for c in cells), note])
    screen.table((*columns, "note"), lines)


def peers(
    data: Annotated[
        Path, typer.Option(help="Images, laid out as for `iqvit eval imagenet --data`.")
    ],
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="The float model, as `iqvit quantize` names it.")
    ] = "timm:vit_tiny_patch16_224",
    weights: Weights = None,
    calib: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration images.")] = 128,
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
    ours: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="An .iqv or artifact of iqvit itself; repeatable."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score so many, evenly spaced.")
    ] = None,
    threads: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of threads to time at.")
    ] = "1,2",
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs each.")] = 50,
    no_time: Annotated[bool, typer.Option("--no-time", help="Accuracy only.")] = False,
    time_only: Annotated[bool, typer.Option("--time-only", help="Latency only.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what is made; what is there is not made again."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows.")] = None,
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
        calibrating, _ = read_images(excluded, model, False, report)
        kept = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shop = Workshop(model, calibrating, few, kept / key_of(model, calibrating, few))
        rate = functools.partial(
            evaluate,
            items=found.items,
            preprocess=float_subject(model).preprocess,
            reference=remembered(model.scores),
            classes=known_classes(found),
            exclude=excluded,
            limit=images,
            progress=reading(report),
        )
        jobs = [
            (
                our_row(path, names_hash(data, excluded)),
                functools.partial(open_for_timing, path, stack, report, (None, None, None)),
            )
            for path in ours or ()
        ]
        jobs += [(peer_row(n, shop), functools.partial(open_peer, n, shop)) for n in names]
        subjects: dict[str, Subject] = {}
        for row, make in jobs:
            subject = measured(row, make, None if time_only else rate, counts)
            subjects |= {} if subject is None else {row["peer"]: subject}
            screen.note(f"{row['peer']}: {row.get('error', 'done')}")
        rows = [row for row, _ in jobs]
        if subjects and not no_time:
            add_times(rows, subjects, counts, runs, report)
    write_json(json, {"spec": spec, "seed": seed, **machine(), **versions()}, rows)
    show(rows, [] if no_time else counts)


if __name__ == "__main__":
    typer.run(guarded(peers))
