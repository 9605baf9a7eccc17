"""What people see: tables on stdout; notes and progress bars on stderr, bars on a terminal only."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Report = Callable[[str, int, int], None]
"""Called as `report(stage, done, total)`; a total of 0 means that it cannot be known."""


def leads() -> bool:
    """Whether this is the one process that tells: of those of `torchrun` the first."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Something the user should know that is no result."""
    if leads():
        print(f"note: {text}", file=sys.stderr)


def number(value: Any) -> str:
    """A value as people read it: thousands separated, four digits of a fraction."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 0.01 <= abs(value) < 1e6 else f"{value:.4g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table on a terminal; elsewhere tab-separated lines under one of names, numbers bare."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join("" if cell is None else str(cell) for cell in row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(number(cell)) for cell in row))
    Console().print(shown)


def facts(values: Mapping[str, Any], title: str = "") -> None:
    """Names and values below each other; on a pipe one `name<TAB>value` a line."""
    if not sys.stdout.isatty():
        for name, value in values.items():
            print(f"{name}\t{'' if value is None else value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, box=None, show_header=False, title_justify="left")
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in values.items():
        shown.add_row(name, Text(number(value)))
    Console().print(shown)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table as Markdown."""
    lines = [columns, ["---"] * len(columns), *([number(c) for c in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@contextmanager
def progress() -> Iterator[Report]:
    """Bars for the stages that are reported; silent where stderr is no terminal."""
    if not sys.stderr.isatty() or not leads():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield report


@contextmanager
def staged(report: Report) -> Iterator[Callable[[str], None]]:
    """For stages that are only named when they begin: the one before is then done."""
    begun: list[str] = []

    def begin(stage: str) -> None:
        if begun:
            report(begun[-1], 1, 1)
        begun.append(stage)
        report(stage, 0, 0)

    yield begin
    if begun:
        report(begun[-1], 1, 1)
