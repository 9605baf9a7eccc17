"""The plots of a report, as SVG: accuracy against latency, SQNR of nodes, time of operators."""

import math
from collections.abc import Mapping, Sequence

from iqvit.compare import LAYOUT
from iqvit.eval.report import INTERPRETED, MIXED_ROW, TITLES, Report, Row, worst_nodes
from iqvit.eval.svg import GREY, INK, Drawing, Frame

WIDTH = 720
COLOURS = ("#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
"""Okabe and Ito's, which colour-blind people tell apart; the first is for float."""
MIXED_COLOUR = "#009e73"
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("conv2d", "linear", "matmul", "row_linear"),
    "attention": ("attention", "deform_attention", "isoftmax", "shiftmax", "softmax"),
    "normalisation": ("ilayernorm", "l2_normalize", "layernorm"),
    "activations": ("igelu", "interpolate", "lambda_shiftgelu", "lookup", "rectified", "shiftgelu"),
    "additions": ("add",),
}
"""Integer operators by what they are; all others are "other"."""
OTHER = "other"
LEAST_SPAN = 1.0
"""Of an axis of percentages."""
WORST = 5
SHOWN_OPERATORS = 12
INFINITE_DB = 120.0
"""Where exact nodes stand in the plot."""


def accuracy_plot(report: Report) -> str:
    """A field for each headline metric: what is reached, against the time of one image."""
    timed = [row for row in report.rows if row.times and row.runs_on != INTERPRETED]
    mixed = next((row for row in report.rows if row.model == MIXED_ROW), None)
    keys = report.headlines
    drawing = Drawing(WIDTH, 350, "Accuracy against latency")
    longest = max(time.median_ms for row in timed for time in row.times)
    width = (WIDTH - 20) / len(keys) - 62
    for place, key in enumerate(keys):
        rows = [
            row for row in (*timed, *([mixed] if mixed else [])) if row.metrics.get(key) is not None
        ]
        values = [value for row in rows if (value := row.metrics[key]) is not None]
        field = (52 + place * (width + 62), 66, width, 190)
        frame = Frame(drawing, field, (0, longest * 1.08), _around(values))
        frame.axes("latency of one image, ms", f"{TITLES[key]}, %")
        if mixed is not None and (level := mixed.metrics.get(key)) is not None:
            y = frame.y(level)
            drawing.line(
                [field[0], field[0] + width], [y] * 2, MIXED_COLOUR, 1.5, stroke_dasharray="5 4"
            )
        for index, row in enumerate(timed):
            _marks(frame, row, key, COLOURS[index])
    entries = [(row.name, COLOURS[index]) for index, row in enumerate(timed)]
    if mixed is not None:
        entries.append((f"{MIXED_ROW} (not timed)", MIXED_COLOUR))
    _legend(drawing, entries, WIDTH - 170)
    threads = report.threads
    if len(threads) > 1:
        words = f"open: {threads[0]}, filled: {threads[-1]} threads"
        drawing.text(WIDTH - 10, 20, words, 11, GREY, "end")
    return _signed(drawing, report)


def nodes_plot(report: Report) -> str:
    """The signal-to-noise ratio of every integer node against its float node."""
    drawing = Drawing(WIDTH, 370, "SQNR of every node")
    levels = [min(node["sqnr_db"], INFINITE_DB) for node in report.nodes]
    finite = [level for level in levels if math.isfinite(level) and level < INFINITE_DB]
    top = min(max(finite, default=60.0) * 1.08, INFINITE_DB)
    span = (min(0.0, min(finite, default=0.0)), max(top, 1.0))
    frame = Frame(drawing, (52, 66, WIDTH - 72, 210), (0, max(1, len(levels))), span)
    frame.axes("node, in the order of the program", "SQNR, dB")
    families = [*FAMILIES, OTHER]
    for place, (node, level) in enumerate(zip(report.nodes, levels, strict=True)):
        colour = COLOURS[(families.index(_family(node["op"])) + 1) % len(COLOURS)]
        drawing.dot(frame.x(place + 0.5), frame.y(min(max(level, span[0]), span[1])), 3, colour)
    order = {id(node): place for place, node in enumerate(report.nodes)}
    for number, node in enumerate(worst_nodes(report, WORST, tuple(LAYOUT)), 1):
        x, y = frame.x(order[id(node)] + 0.5), frame.y(max(node["sqnr_db"], span[0]))
        drawing.dot(x, y, 6, INK, "none")
        # Neighbours are often among the worst together.
        drawing.text(x, y + (18 if number % 2 else -10), str(number), 11, INK, "middle")
    used = {_family(node["op"]) for node in report.nodes}
    entries = [
        (name, COLOURS[(place + 1) % len(COLOURS)])
        for place, name in enumerate(families)
        if name in used
    ]
    _legend(drawing, entries, WIDTH - 10)
    return _signed(drawing, report)


def operators_plot(report: Report) -> str:
    """Bars: where the time of one run goes."""
    total = max(sum(ms for _, ms in report.operators), 1e-9)
    ranked = sorted(report.operators, key=lambda pair: -pair[1])
    shown = ranked[:SHOWN_OPERATORS]
    rest = ranked[SHOWN_OPERATORS:]
    if rest:
        shown = [*shown, (f"{len(rest)} others", sum(ms for _, ms in rest))]
    row, left, right = 22, 290, 110
    drawing = Drawing(WIDTH, 62 + row * len(shown), "Time per operator")
    longest = max(ms for _, ms in shown)
    for place, (name, ms) in enumerate(shown):
        y = 10 + place * row
        length = (WIDTH - left - right) * ms / longest
        drawing.text(left - 8, y + 14, _shortened(name), 11.5, INK, "end")
        drawing.bar(left, y + 3, max(length, 0.5), row - 8, COLOURS[1])
        words = f"{ms:.2f} ms, {100 * ms / total:.0f} %"
        drawing.text(left + length + 6, y + 14, words, 11, GREY)
    return _signed(drawing, report)


def plots(report: Report) -> dict[str, str]:
    """SVG by name, of what there are figures for."""
    found = {}
    if report.headlines and any(row.times for row in report.rows if row.runs_on != INTERPRETED):
        found["accuracy"] = accuracy_plot(report)
    if report.nodes:
        found["sqnr"] = nodes_plot(report)
    if report.operators:
        found["operators"] = operators_plot(report)
    return found


def _marks(frame: Frame, row: Row, key: str, colour: str) -> None:
    value = row.metrics.get(key)
    if value is None:
        return
    xs = [frame.x(time.median_ms) for time in row.times]
    ys = [frame.y(value)] * len(xs)
    frame.drawing.line(xs, ys, colour, 1.5)
    for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
        frame.drawing.dot(x, y, 5, colour, "#ffffff" if place == 0 and len(xs) > 1 else None)


def _legend(drawing: Drawing, entries: Sequence[tuple[str, str]], right: float) -> None:
    """Names with their colours at the top, in as many lines as they need."""
    x, y = 12.0, 20.0
    for name, colour in entries:
        wide = 26 + 6.3 * len(name)
        if x + wide > right and x > 12:
            x, y = 12.0, y + 17
        drawing.dot(x + 5, y - 4, 5, colour)
        drawing.text(x + 15, y, name, 11.5)
        x += wide


def _signed(drawing: Drawing, report: Report) -> str:
    """With the lines that every figure carries, in small letters at its foot."""
    for place, line in enumerate(reversed(report.provenance.lines)):
        cut = line if len(line) <= 150 else f"{line[:149]}…"
        drawing.text(8, drawing.height - 6 - 11 * place, cut, 8, GREY)
    return drawing.render()


def _around(values: Sequence[float]) -> tuple[float, float]:
    """A range of percentages with some room, never so small that noise looks like a step."""
    lo, hi = min(values), max(values)
    room = max(LEAST_SPAN, hi - lo) * 0.6
    middle = (lo + hi) / 2
    return max(0.0, min(lo, middle - room)), min(100.0, max(hi, middle + room))


def _family(operator: str) -> str:
    return next((name for name, members in FAMILIES.items() if operator in members), OTHER)


def _shortened(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:43]}…"
