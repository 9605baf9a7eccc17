"""`iqvit bench --profile`: where the time of a library goes, function by function."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iqvit.commands import screen
from iqvit.commands.subject import Subject
from iqvit.errors import DataError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report
    from iqvit.tvm_backend.profile import Profile

COLUMNS = {
    "function": "function",
    "operators": "operators",
    "calls": "calls",
    "ms": "ms",
    "share": "share",
    "gmacs_per_s": "gmac/s",
    "peak_share": "of peak",
    "mb": "mb",
    "gb_per_s": "gb/s",
}
"""Titles of the table by key of a row."""
KERNELS, BETWEEN, WHOLE = "kernels", "between", "whole"
"""What the last rows are of."""
Row = dict[str, Any]


def require_library(subjects: Sequence[Subject]) -> None:
    """`DataError` unless there is something to profile."""
    if all(subject.folder is None for subject in subjects):
        raise DataError("--profile needs an artifact or an .iqv among the models")


def add_profiles(
    subjects: Sequence[Subject], rows: Sequence[Row], runs: int, report: "Report"
) -> list[tuple[Row, list[Row]]]:
    """Profile the library of every row of `bench.measure`, at its number of threads.

    Returns these rows, each with the rows of its profile: `COLUMNS`, `macs` and `bytes` as far as
    they are known. They are added to the row as `profile_KEY@FUNCTION`, too.
    """
    from iqvit.tvm_backend.profile import profile

    by_name = {subject.name: subject for subject in subjects}
    found = []
    for row in rows:
        subject = by_name[row["model"]]
        if subject.folder is None:
            continue
        subject.set_threads(row["threads"])
        stage = f"profiling {subject.name}, threads {row['threads']}"
        profiled = profile(
            subject.folder, runs, lambda done, total, stage=stage: report(stage, done, total)
        )
        lines = lines_of(profiled, row.get("peak_gmacs_per_s"))
        found.append((row, lines))
        row |= {
            f"profile_{key}@{line['function']}": value
            for line in lines
            for key, value in line.items()
            if key not in ("function", "mb")
        }
    return found


def lines_of(profile: "Profile", peak: float | None) -> list[Row]:
    """A row for each function, the slowest first; then their sum, what lies between, and all.

    peak: 10^9 multiply-accumulates a second, of the CPU at this number of threads.
    """
    lines: list[Row] = []
    for row in profile.rows:
        about = {} if row.about is None else vars(row.about)
        lines.append({"function": row.name, **about, "calls": row.calls, "ms": row.ms})
    kernels: Row = {"function": KERNELS, "ms": profile.kernels_ms}
    for key in ("calls", "macs", "bytes"):
        known = [line[key] for line in lines if key in line]
        kernels[key] = sum(known) if len(known) == len(lines) else None
    whole = {**kernels, "function": WHOLE, "ms": profile.ms}
    lines += [kernels, {"function": BETWEEN, "ms": profile.between_ms}, whole]
    return [{**line, **_rates(line, profile.ms, peak)} for line in lines]


def _rates(line: Row, whole_ms: float, peak: float | None) -> Row:
    ms, macs, size = line["ms"], line.get("macs"), line.get("bytes")
    speed = macs / ms / 1e6 if macs else None
    return {
        "share": 100 * ms / whole_ms,
        "gmacs_per_s": speed,
        "peak_share": 100 * speed / peak if speed and peak else None,
        "mb": None if size is None else size / 1e6,
        "gb_per_s": size / ms / 1e6 if size else None,
    }


def show_profile(row: Row, lines: Sequence[Row]) -> None:
    """Print one profile."""
    about = {key: row.get(key) for key in ("model", "threads", "peak_gmacs_per_s")}
    screen.facts(about, "Where the time goes")
    cells = [[_short(key, line.get(key)) for key in COLUMNS] for line in lines]
    screen.table(tuple(COLUMNS.values()), cells)


def _short(key: str, value: Any) -> Any:
    # To microseconds, or two digits of a fraction: the table has to fit on a terminal.
    return round(value, 3 if key == "ms" else 2) if isinstance(value, float) else value
