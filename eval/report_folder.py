"""A report as a folder: the page, the tables for papers, the figures as files, and all as JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iqvit.eval.report import Report
from iqvit.eval.report_page import page
from iqvit.eval.report_plots import plots
from iqvit.eval.report_tables import class_table, csv_of, latex, markdown, results_csv, tables

PAGE, JSON = "report.html", "report.json"


def write_report(folder: Path, report: Report) -> None:
    """All files of a report into an existing folder; OSError where they cannot be written.

    report.html needs nothing else. results.md, .tex and .csv are its tables, nodes.csv and
    operators.csv what is plotted, classes.csv the metrics of every class; plots/ and pictures/ hold
    the figures, report.json everything but the pictures.
    """
    drawn = plots(report)
    _write(folder / PAGE, page(report, drawn))
    _write(folder / JSON, json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n")
    shown = "".join(f"![{name}](plots/{name}.svg)\n" for name in drawn)
    for name, text in text_files(report, shown).items():
        _write(folder / name, text)
    for name, text in drawn.items():
        _write(folder / "plots" / f"{name}.svg", text)
    for strip in report.strips:
        for panel in strip.panels:
            path = folder / "pictures" / f"{strip.name}.{panel.title.replace(' ', '_')}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(panel.jpeg)


def text_files(report: Report, shown: str = "") -> dict[str, str]:
    """The tables by file name; each says where its figures come from. shown: ends the Markdown."""
    lines = report.provenance.lines
    kinds = [kind for kind in ("iou", "ap") if any(kind in row.classes for row in report.rows)]
    whole = [*tables(report), *(class_table(report, kind) for kind in kinds)]
    above = [f"# {report.model}", "", *(f"- {note}" for note in report.notes), ""]
    origin = "  \n".join([f"`{lines[0]}`", *lines[1:], ""])
    nodes = ("node", "origin", "op", "dtype", "sqnr_db", "largest_steps", "source")
    found = {
        "results.md": "\n".join([*above, *(f"{markdown(t)}\n{origin}" for t in whole), shown]),
        "results.tex": "\n".join(
            ["% \\usepackage{booktabs,graphicx}", *(latex(table, lines) for table in whole)]
        ),
        "results.csv": results_csv(report, lines),
    }
    if report.nodes:
        rows = [[node[key] for key in nodes] for node in report.nodes]
        found["nodes.csv"] = csv_of(nodes, rows, lines)
    if report.operators:
        found["operators.csv"] = csv_of(("operators", "ms"), report.operators, lines)
    if kinds:
        rows = [
            (row.model, row.runs_on, kind, name, value)
            for row in report.rows
            for kind, values in row.classes.items()
            for name, value in values.items()
        ]
        columns = ("model", "runs_on", "metric", "class", "value")
        found["classes.csv"] = csv_of(columns, rows, lines)
    return found


def as_json(report: Report) -> dict[str, Any]:
    """All but the pictures as plain JSON values; null for what is no finite number."""
    found = {
        "model": report.model,
        "task": report.task,
        "notes": list(report.notes),
        "provenance": {**asdict(report.provenance), "versions": report.provenance.versions},
        "rows": [asdict(row) for row in report.rows],
        "nodes": [dict(node) for node in report.nodes],
        "images compared node by node": report.compared,
        "operators": [{"operators": name, "ms": ms} for name, ms in report.operators],
        "ms between the operators": report.between,
        "threads of the operators": report.profiled,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
