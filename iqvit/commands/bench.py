"""`iqvit bench`: how fast models are, measured in turns."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.options import MODEL_HELP, Classes, InputSize, Json, Weights, thread_counts
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.subject import Subject, open_artifact, open_subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report

COLUMNS = (
    "model",
    "kind",
    "threads",
    "latency_ms",
    "latency_p90_ms",
    "fps",
    "gmacs_per_s",
    "peak_share",
)


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    threads: Annotated[
        str, typer.Option("--threads", metavar="N,N", help="Numbers of threads to measure at.")
    ] = "1",
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed runs each.")] = 50,
    weights: Weights = None,
    input_size: InputSize = None,
    classes: Classes = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also where the time of each artifact goes.")
    ] = False,
    rpc: Annotated[
        str | None,
        typer.Option(
            "--rpc",
            metavar="HOST:PORT",
            help="Time artifacts on the board whose `python -m tvm.exec.rpc_server` listens there.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Latency and speed of models that take turns, so that all meet the same clock and load.

    \b
    Examples:
      iqvit bench artifact/ timm:vit_tiny_patch16_224 --threads 1,2
      iqvit bench board/ --rpc 192.168.0.7:9090

    One image a run. latency_ms is the median, latency_p90_ms the 90th percentile; gmacs_per_s are
    10^9 multiply-accumulates a second; peak_share is how much that is, in percent, of what this
    CPU's 8-bit dot instruction reaches at most, measured here. An .iqv is compiled for this CPU
    first. --weights, --input-size and --classes are for the float models. In --json the plain
    names are the first model at the first number of threads; `NAME@MODEL@THREADS` are all.

    --profile adds a table for each artifact and number of threads, with a row for each function of
    the library, the slowest first: the operators that it computes together; its calls in one run
    and their milliseconds, by medians; their share of the run; speed and share of the peak; and the
    megabytes of the tensors that it is given, weights as they are packed, and of its results. The
    last rows are the kernels' sum, what lies between them (memory, views; interruptions where
    others use the CPU, too), and the whole run. In --json they are `profile_NAME@FUNCTION`.
    Artifacts of older versions do not tell operators, multiply-accumulates and bytes.
    """
    require_file(json)
    counts = thread_counts(threads)
    if len(set(models)) < len(models):
        raise DataError("the same model is named twice")
    from iqvit.commands.bench_profile import add_profiles, require_library, show_profile
    from iqvit.eval.bench import machine

    if rpc is not None:
        _bench_board(models, rpc, counts, runs, profile, json)
        return
    with ExitStack() as stack, screen.progress() as report:
        opened = [
            open_for_timing(model, stack, report, (weights, input_size, classes))
            for model in models
        ]
        if profile:
            require_library(opened)
        rows = measure(opened, counts, runs, report)
        profiled = add_profiles(opened, rows, runs, report) if profile else []
    about = machine()
    write_metrics(json, {**flat(rows), **about})
    shown = {key: about[key] for key in ("cpu", "cores", "isa", "load", "date")}
    screen.facts(shown, "Measured on")
    print()
    screen.table(COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows])
    for row, lines in profiled:
        print()
        show_profile(row, lines)


def _bench_board(
    models: list[str], address: str, counts: list[int], runs: int, profile: bool, json: Path | None
) -> None:
    from iqvit.commands.bench_board import measure_board

    if profile:
        raise DataError("--profile looks into libraries that run here; leave it out with --rpc")
    with screen.progress() as report:
        rows = measure_board(models, address, counts, runs, report)
    write_metrics(json, {**flat(rows), "board": address})
    screen.table(COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows])


def open_for_timing(
    model: str, stack: ExitStack, report: "Report", options: tuple[Any, Any, Any]
) -> Subject:
    """A subject; an .iqv as the library that it compiles to, kept until `stack` closes."""
    path = Path(model)
    if path.suffix == ".iqv" or path.is_file():
        from iqvit import tvm_backend
        from iqvit.serialize import load
        from iqvit.tvm_backend.cache import usual_cache

        graph = load(path)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "artifact"
        report(f"compiling {model}", 0, 0)
        tvm_backend.compile(graph, folder, cache=usual_cache())
        report(f"compiling {model}", 1, 1)
        subject = open_artifact(folder)
        return Subject(**{**vars(subject), "name": model})
    if path.is_dir() or ":" not in model:
        return open_subject(model)
    weights, input_size, classes = options
    return open_subject(model, weights=weights, input_size=input_size, classes=classes)


def take_turns(
    subjects: Mapping[str, Subject],
    threads: Sequence[int],
    runs: int,
    report: "Report",
    fewer: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """`eval.bench.bench` of subjects, each on its own example: a row for each number of threads and
    name."""
    from iqvit.eval.bench import bench as timed

    return timed(
        {name: subject.call for name, subject in subjects.items()},
        lambda name: subjects[name].example(),
        threads=threads,
        runs=runs,
        set_threads={name: subject.set_threads for name, subject in subjects.items()},
        fewer=fewer,
        progress=lambda done, total: report("timing", done, total),
    )


def measure(
    subjects: Sequence[Subject], threads: Sequence[int], runs: int, report: "Report"
) -> list[dict[str, Any]]:
    """One row for each number of threads and subject, with `COLUMNS` as far as they are known."""
    by_name = {subject.name: subject for subject in subjects}
    rows = take_turns(by_name, threads, runs, report)
    peaks = {count: peak(count) for count in dict.fromkeys(threads)}
    for row in rows:
        subject = by_name[row["model"]]
        row["kind"] = subject.kind
        macs, most = subject.facts.get("macs"), peaks[row["threads"]]
        if macs is None:
            continue
        row |= {"macs": macs, "gmacs_per_s": macs / row["latency_ms"] / 1e6}
        if most is not None:
            row["peak_gmacs_per_s"] = most / 1e9
            row["peak_share"] = 100 * row["gmacs_per_s"] / row["peak_gmacs_per_s"]
    return rows


def peak(threads: int) -> float | None:
    """This CPU's 8-bit multiply-accumulates a second; None without a dot instruction for them."""
    from iqvit.tvm_backend.targets import HOST, resolve

    target = resolve(HOST)
    if target.isa is None:
        return None
    from iqvit.tvm_backend.peak import measure_peak

    return measure_peak(target, threads)


def flat(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first row under plain names; with more than one, all under NAME@MODEL@THREADS."""
    found = dict(rows[0])
    if len(rows) == 1:
        return found
    for row in rows:
        suffix = f"{row['model']}@{row['threads']}"
        found |= {f"{k}@{suffix}": v for k, v in row.items() if k not in ("model", "threads")}
    return found
