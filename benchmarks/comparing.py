"""What all comparisons with other toolchains share: options, rows, scores, times and table."""

import functools
import hashlib
import importlib.metadata
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from toolchains import PEERS, Peer, open_peer
from torch import Tensor
from workshop import Workshop

from iqvit.commands import screen
from iqvit.commands.bench import open_for_timing, take_turns
from iqvit.commands.quantize import read_images
from iqvit.commands.screen import Report
from iqvit.commands.subject import Subject
from iqvit.errors import DataError, IqvitError
from iqvit.eval.bench import machine
from iqvit.files import write_atomically
from iqvit.models.float_model import FloatModel

CalibDir = Annotated[Path, typer.Option(metavar="DIR", help="Images to calibrate on.")]
Calib = Annotated[int, typer.Option(min=1, metavar="N", help="How many of them.")]
Ours = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="An .iqv or artifact of iqvit itself; repeatable."),
]
Threads = Annotated[str, typer.Option(metavar="N,N", help="Numbers of threads to time at.")]
Runs = Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs each.")]
Keep = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep what is made; what is there is not made again."),
]
Rows = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows.")]

LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
"""Their versions decide what is made, and are in the result."""
OTHERS = ("executorch", "torchao")
"""Their versions are in the result as well; what they make is kept under its version."""
EXTRAS = dict.fromkeys(("onnx", "onnxruntime", "openvino", "nncf"), "peers") | dict.fromkeys(
    OTHERS, "executorch"
)
"""The extra of this project that installs a library."""
TIMES = ("latency_ms", "latency_p90_ms", "latency_min_ms", "fps", "runs")

T = TypeVar("T")
Row = dict[str, Any]
Rate = Callable[[Subject], Mapping[str, Any]]
"""What a subject reaches on the data, as flat metrics."""


@dataclass(frozen=True)
class Job:
    """A row, with what is known of it beforehand, and how its subject is made.

    seconds: as of `Peer`, how long it may be timed at each number of threads; None for all runs.
    """

    row: Row
    make: Callable[[], Subject]
    seconds: float | None = None


def calibrated_shop(
    model: FloatModel,
    paths: list[Path],
    keep: Path | None,
    stack: ExitStack,
    report: Report,
    few: int | None = None,
) -> Workshop:
    """A workshop with these images; what it makes is kept in `keep`, or until `stack` closes."""
    images, _ = read_images(paths, model, False, report)
    few = len(images) if few is None else few
    kept = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return Workshop(model, images, few, kept / key_of(model, images, few))


def our_jobs(
    paths: Sequence[str] | None, calibrated_on: str, stack: ExitStack, report: Report
) -> list[Job]:
    """Of iqvit's own programs. calibrated_on: the `names_hash` of the calibration images."""
    return [
        Job(
            our_row(path, calibrated_on),
            functools.partial(open_for_timing, path, stack, report, (None, None, None)),
        )
        for path in paths or ()
    ]


def our_row(path: str, expected: str) -> Row:
    """The row of one of iqvit's; an .iqv tells whether the images left out calibrated it."""
    if Path(path).is_dir():
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        note = "iqvit; which images calibrated an artifact is not known"
        return {"peer": path, "note": note, "file_bytes": size}
    if not Path(path).is_file():
        raise DataError(f"--ours {path}: there is no such .iqv or artifact folder")
    from iqvit.serialize import load

    meta = load(Path(path)).meta
    same = meta.get("images_hash") == expected
    note = "iqvit" if same else "iqvit; NOT known to be calibrated on the images left out"
    size = Path(path).stat().st_size
    images = meta.get("images")
    return {"peer": path, "note": note, "calibration_images": images, "file_bytes": size}


def peer_job(name: str, peer: Peer, shop: Workshop) -> Job:
    """Of another toolchain's."""
    row = {"peer": name, "note": peer.note, "calibration_images": peer.images(shop)}
    return Job(row, functools.partial(open_peer, name, peer, shop), peer.seconds)


def chosen(text: str | None, known: Mapping[str, Any] = PEERS) -> list[str]:
    """The peers of `--only`; IqvitError for one that is not known."""
    names = list(known) if text is None else list(dict.fromkeys(filter(None, text.split(","))))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise IqvitError(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def compare(
    jobs: Sequence[Job],
    rate: Rate | None,
    threads: Sequence[int],
    runs: int,
    report: Report,
    headline: str | None = None,
) -> list[Row]:
    """Makes and rates one after the other, then times all in turns (not at all for 0 runs).

    headline: the metric that is said of each when it is done.
    """
    subjects: dict[str, Subject] = {}
    for job in jobs:
        name = job.row["peer"]
        subject = measured(job.row, job.make, rate, threads)
        subjects |= {} if subject is None else {name: subject}
        screen.note(f"{name}: {job.row.get('error', job.row.get(headline or '', 'done'))}")
    rows = [job.row for job in jobs]
    if subjects and runs > 0:
        limits = {job.row["peer"]: job.seconds for job in jobs if job.seconds is not None}
        fewer = {
            row["peer"]: fewer_runs(limits[row["peer"]], row["call_seconds"], runs)
            for row in rows
            if row["peer"] in limits.keys() & subjects.keys()
        }
        add_times(rows, subjects, threads, runs, report, fewer)
    return rows


def fewer_runs(limit: float, seconds: float, runs: int) -> int:
    """As many of `runs` runs of so many seconds as the limit has time for; one at least."""
    return max(1, min(runs, int(limit / seconds)))


def measured(
    row: Row, make: Callable[[], Subject], rate: Rate | None, threads: Sequence[int]
) -> Subject | None:
    """Adds what a peer reaches to its row; None, and the reason in the row, where it fails."""
    begun = time.perf_counter()
    try:
        with quiet():
            subject = make()
            row["make_seconds"] = time.perf_counter() - begun
            row |= subject.facts
            row |= first_calls(subject, threads)
            if rate is not None:
                row |= rate(subject)
    except IqvitError:
        raise
    except Exception as error:  # noqa: BLE001  (other people's code: that it fails is the result)
        row["error"] = reason(error)
        return None
    return subject


def first_calls(subject: Subject, threads: Sequence[int]) -> Row:
    """Runs it once on each number of threads, so that what cannot run fails here and not between
    timings, and leaves it on one; the seconds of the last call tell what is too slow to repeat."""
    begun = time.perf_counter()
    for count in dict.fromkeys((*threads, 1)):
        subject.set_threads(count)
        begun = time.perf_counter()
        subject.call(subject.example())
    seconds = time.perf_counter() - begun
    subject.set_threads(1)
    return {"call_seconds": seconds}


def reason(error: Exception) -> str:
    """Why a peer failed, in one line: what is to be installed, or its own first words."""
    library = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if library in EXTRAS:
        return f"{library} is not installed: pip install -e '.[{EXTRAS[library]}]'"
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters and quantisers say off the results."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def add_times(
    rows: Sequence[Row],
    subjects: Mapping[str, Subject],
    threads: Sequence[int],
    runs: int,
    report: Report,
    fewer: Mapping[str, int],
) -> None:
    """Adds `latency_ms@THREADS` and its like to the rows; all take turns, some for `fewer` runs."""
    by_name = {row["peer"]: row for row in rows}
    for timed in take_turns(subjects, threads, runs, report, fewer):
        for key in TIMES:
            by_name[timed["model"]][f"{key}@{timed['threads']}"] = timed[key]


def remembered(answer: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """`answer`, computed once for each batch of images."""
    known: dict[bytes, T] = {}

    def recall(images: Tensor) -> T:
        key = hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in known:
            known[key] = answer(images)
        return known[key]

    return recall


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Of the libraries that are compared, as far as they are installed."""
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {f"version_{name}": found[name] for name in libraries if name in found}


def key_of(model: FloatModel, images: Tensor, few: int) -> str:
    """Names what is made: another model, other images or other versions are another folder."""
    digest = hashlib.sha256(f"{model.name} {few} {sorted(versions().items())}".encode())
    digest.update(images.numpy().tobytes())
    for name, tensor in model.module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def write_rows(path: Path | None, spec: str, seed: int, rows: Sequence[Row]) -> None:
    """The rows and what they were taken on; null for what is no finite number."""
    if path is None:
        return

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    about = {"spec": spec, "seed": seed, **machine(), **versions((*LIBRARIES, *OTHERS))}
    lines = [{key: plain(value) for key, value in row.items()} for row in rows]
    text = json.dumps({"machine": about, "rows": lines}, indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def show(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """One line a row, numbers rounded, with its note or the reason why it failed."""
    lines = []
    for row in rows:
        cells = [row.get(column) for column in columns]
        note = f"FAILED: {row['error']}" if "error" in row else row["note"]
        lines.append([*(round(c, 2) if isinstance(c, float) else c for c in cells), note])
    screen.table((*columns, "note"), lines)
