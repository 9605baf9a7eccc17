"""The tables of a report: what stands in them, and the same as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from iqvit.eval.report import COMPILED, TITLES, Report, Row, Timing

DASH = "–"
_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "·": r"$\cdot$",
}


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns. left: how many columns hold words. notes: below the table, each
    called by its number, 1 first, where a cell ends in `[number]`."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    notes: tuple[str, ...] = ()


class _Notes:
    """Reasons of dashes, numbered as they come."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def dash(self, reason: str | None) -> str:
        if reason is None:
            return DASH
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{DASH} [{self.reasons.index(reason) + 1}]"


def tables(report: Report) -> list[Table]:
    """The tables that a reader compares by: accuracy and speed, cost, proofs."""
    found = [accuracy_table(report), cost_table(report), proof_table(report)]
    return [table for table in found if table.rows]


def accuracy_table(report: Report) -> Table:
    """Metrics, and latency and speed at every number of threads."""
    notes = _Notes()
    counts = [(n, _threads(n)) for n in report.threads]
    timed = [text for _, name in counts for text in (f"{name}, ms", "FPS")]
    columns = ("model", "runs on", *(TITLES[key] for key in report.metrics), *timed)
    rows = []
    for row in report.rows:
        cells = [_metric(row, key, notes) for key in report.metrics]
        for threads, _ in counts:
            cells += _speed(row, threads, notes)
        rows.append((row.model, row.runs_on, *cells))
    title = "Accuracy and speed"
    if timed:
        title += "; latency of one image, median [least to 90th percentile]"
    return Table("accuracy", title, columns, tuple(rows), 2, tuple(notes.reasons))


def cost_table(report: Report) -> Table:
    """Size and work."""
    notes = _Notes()
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "params": ("parameters, M", lambda n: f"{n / 1e6:.2f}"),
        "macs": ("GMAC", lambda n: f"{n / 1e9:.3f}"),
        "integer_share": ("integer MACs, %", lambda share: f"{share:.2f}"),
        "eight_bit_share": ("8-bit MACs, %", lambda share: f"{share:.2f}"),
        "file_bytes": ("file, MB", lambda size: f"{size / 1e6:.1f}"),
        "memory_kb": ("peak memory, MB", lambda size: f"{size / 1024:.1f}"),
    }

    def cell(row: Row, key: str) -> str:
        value = getattr(row, key)
        return notes.dash(row.dashes.get(key)) if value is None else columns[key][1](value)

    rows = tuple((r.model, r.runs_on, *(cell(r, key) for key in columns)) for r in report.rows)
    titles = ("model", "runs on", *(title for title, _ in columns.values()))
    title = (
        "Cost of one image; MACs are counted on the program, memory is of a process without Python"
    )
    return Table("cost", title, titles, rows, 2, tuple(notes.reasons))


def proof_table(report: Report) -> Table:
    """What was proved and compared, of the integer programs."""
    titles = ("model", "float operations", "overflow", "equal bits on", "machine code")
    rows = []
    for row in report.rows:
        proofs = row.proofs
        if proofs is None or proofs.instructions is None:
            continue
        tight = "" if proofs.headroom_bits is None else f", {proofs.headroom_bits} bits to spare"
        threads = " and ".join(_threads(count) for count in proofs.threads)
        rows.append(
            (
                row.model,
                "none, proved",
                f"none, {proofs.facts:,} proofs{tight}",
                f"{proofs.equal_images} images; {threads}",
                f"{proofs.float_instructions} of {proofs.instructions:,} instructions float",
            )
        )
    title = (
        "Proofs; interpreter and TVM gave equal bits on all images scored, and at these numbers of "
        "threads on one of noise"
    )
    return Table("proofs", title, titles, tuple(rows), 5)


def class_table(report: Report, kind: str) -> Table:
    """A metric of every class: "iou" or "ap"; libraries have their interpreter's."""
    rows = [row for row in report.rows if kind in row.classes and row.runs_on != COMPILED]
    names = list(rows[0].classes[kind]) if rows else []
    cells = ((name, *(_percent(row.classes[kind].get(name)) for row in rows)) for name in names)
    title = {"iou": "IoU of each class", "ap": "AP of each class"}[kind]
    columns = ("class", *(row.model for row in rows))
    return Table(kind, title, columns, tuple(cells))


def markdown(table: Table) -> str:
    """The table, its title above and its notes below it."""
    ruler = ["---"] * table.left + ["---:"] * (len(table.columns) - table.left)
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, ruler, *table.rows)]
    notes = [f"[{number}] {note}" for number, note in enumerate(table.notes, 1)]
    below = ["  \n".join(notes), ""] if notes else []
    return "\n".join([f"**{table.title}**", "", *lines, "", *below])


def latex(table: Table, lines: Sequence[str]) -> str:
    """A `table` of booktabs, by graphicx no wider than the page; `lines` say where its figures come
    from, as comments."""
    columns = "l" * table.left + "r" * (len(table.columns) - table.left)
    body = [" & ".join(map(_tex, cells)) + r" \\" for cells in table.rows]
    notes = [f"{_tex(f'[{n}]')} {_tex(note)}" for n, note in enumerate(table.notes, 1)]
    below = [r"\par\smallskip\footnotesize " + "; ".join(notes)] if notes else []
    head = " & ".join(map(_tex, table.columns)) + r" \\"
    return "\n".join(
        [
            *(f"% {line}" for line in lines),
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_tex(table.title)}.}}",
            rf"\label{{tab:{table.key}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *below,
            r"\end{table}",
            "",
        ]
    )


def html_table(table: Table) -> str:
    """A `table` element with its title and notes; words at the left, numbers at the right."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        kinds = ["w" if place < table.left else "n" for place in range(len(texts))]
        pairs = zip(kinds, texts, strict=True)
        return "".join(f'<{tag} class="{kind}">{html.escape(t)}</{tag}>' for kind, t in pairs)

    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return (
        f"<table><caption>{html.escape(table.title)}</caption>"
        f"<thead><tr>{cells('th', table.columns)}</tr></thead><tbody>{rows}</tbody></table>"
        + (f'<ol class="notes">{notes}</ol>' if notes else "")
    )


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[Any]], lines: Sequence[str]) -> str:
    """Comma-separated lines under one of names, numbers as they are, empty where there is none;
    above them `lines` behind `#`."""
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in lines)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return out.getvalue()


def results_csv(report: Report, lines: Sequence[str]) -> str:
    """All that the rows hold, in one table."""
    parts = ("median_ms", "least_ms", "p90_ms", "fps", "runs")
    timed = [f"{part}@{n}" for n in report.threads for part in parts]
    facts = ("params", "macs", "integer_share", "eight_bit_share", "file_bytes", "memory_kb")
    proved = ("facts", "accumulators", "headroom_bits", "equal_images", "float_instructions")
    rows = []
    for row in report.rows:
        times = {time.threads: time for time in row.times}
        speeds = [
            getattr(times[n], part) if n in times else None
            for n in report.threads
            for part in parts
        ]
        proofs = [None if row.proofs is None else getattr(row.proofs, key) for key in proved]
        own = [getattr(row, key) for key in facts]
        metrics = [row.metrics.get(key) for key in report.metrics]
        rows.append((row.model, row.runs_on, *metrics, *speeds, *own, *proofs))
    names = ("proofs", "accumulators", "headroom_bits", "equal_images", "float_instructions")
    return csv_of(("model", "runs_on", *report.metrics, *timed, *facts, *names), rows, lines)


def _metric(row: Row, key: str, notes: _Notes) -> str:
    value = row.metrics.get(key)
    return notes.dash(row.dashes.get(key)) if value is None else _percent(value)


def _percent(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2f}"


def _speed(row: Row, threads: int, notes: _Notes) -> tuple[str, str]:
    found: Timing | None = next((t for t in row.times if t.threads == threads), None)
    if found is None:
        dash = notes.dash(row.dashes.get("times"))
        return dash, dash
    least, median, most = map(_short, (found.least_ms, found.median_ms, found.p90_ms))
    return f"{median} [{least}{DASH}{most}]", _short(found.fps)


def _short(value: float) -> str:
    """Three digits or a few more: 0.52, 17.2, 4844."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
