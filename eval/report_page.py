"""The page of a report: one HTML file that needs no other, readable on a screen and on paper."""

import base64
import html
from collections.abc import Mapping, Sequence

from iqvit.compare import LAYOUT
from iqvit.eval.report import (
    CALIBRATED_ROW,
    COMPILED,
    FLOAT_ROW,
    INTERPRETED,
    MIXED_ROW,
    TRAINED_ROW,
    Panel,
    Report,
    Strip,
    worst_nodes,
)
from iqvit.eval.report_plots import WORST
from iqvit.eval.report_tables import Table, class_table, html_table, tables

STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #222; background: #fff; margin: 0; }
main { max-width: 920px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 38px 0 8px; padding-top: 10px; border-top: 1px solid #ddd; }
p { margin: 6px 0 12px; }
figure { margin: 14px 0 26px; break-inside: avoid; }
figcaption { font-size: 9.5px; line-height: 1.4; color: #808080; margin-top: 5px; }
figcaption code { font-size: 9px; word-break: break-all; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 12px; }
caption { text-align: left; font-weight: bold; font-size: 13px; padding-bottom: 5px; }
thead th { border-top: 1.5px solid #222; border-bottom: 1px solid #222; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 1.5px solid #222; }
th, td { padding: 4px 5px; text-align: left; font-variant-numeric: tabular-nums; }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
td { vertical-align: top; overflow-wrap: anywhere; }
tr > .w:first-child, tr > .w:nth-child(3) { white-space: nowrap; }
ol.notes { font-size: 11px; color: #555; margin: 5px 0 0; padding-left: 20px; }
ul { padding-left: 20px; margin: 6px 0; }
svg, img { max-width: 100%; height: auto; display: block; }
.strip { display: flex; gap: 8px; margin: 12px 0; break-inside: avoid; }
.strip div { flex: 1; min-width: 0; font-size: 11.5px; color: #444; }
.grid { display: flex; flex-wrap: wrap; gap: 14px; margin: 12px 0; }
.grid div { width: 132px; font-size: 11px; line-height: 1.35; color: #444; break-inside: avoid; }
.legend { font-size: 11.5px; margin: 6px 0; }
.legend span { display: inline-block; margin-right: 12px; }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 4px; }
dl { display: grid; grid-template-columns: 130px 1fr; font-size: 12.5px; gap: 3px 10px; margin: 0; }
dt { color: #555; } dd { margin: 0; word-break: break-word; }
@media print { main { padding: 0; max-width: none; } h2 { break-after: avoid; } }
"""

ROWS: Mapping[str, str] = {
    FLOAT_ROW: "the model as it is, in 32-bit floats, run by PyTorch; its file is 4 bytes a "
    "parameter.",
    MIXED_ROW: "matrix products, convolutions and additions in the calibrated integers; softmax, "
    "activations, normalisation and sampling by their real functions, between dequantisation and "
    "requantisation. An evaluation in PyTorch alone, for comparison: there is no compiled program "
    "of it, so it has no latency, and its accuracy is that of arithmetic, not of another product.",
    CALIBRATED_ROW: "integers only, from pixels to results; scales come from calibration images, "
    "nothing is trained.",
    TRAINED_ROW: "the same after training through the integers.",
}
RUNTIMES: Mapping[str, str] = {
    INTERPRETED: "the definition of the integer operators; it is not made to be fast.",
    COMPILED: "the program as compiled library.",
}


def page(report: Report, drawn: Mapping[str, str]) -> str:
    """The HTML text; `drawn` are the plots as SVG, by name."""
    accuracy, *others = tables(report)
    sections = [
        _head(report),
        _section("Accuracy and speed", [_figure(report, accuracy), _plot("accuracy", drawn)]),
        _section("Cost and proofs", [_equal(report), *(_figure(report, t) for t in others)]),
        _section("Where integers lose", _nodes(report, drawn)),
        _section("Where the time goes", _operators(report, drawn)),
        _section("What float and integers see", _pictures(report)),
        _section("Classes", _classes(report)),
        _section("How this was made", [_made(report)]),
    ]
    title = html.escape(f"{report.model}: float and integers")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _section(title: str, parts: Sequence[str]) -> str:
    filled = [part for part in parts if part]
    return "" if not filled else "\n".join([f"<h2>{title}</h2>", *filled])


def _head(report: Report) -> str:
    names = list(dict.fromkeys(row.model for row in report.rows))
    runtimes = {row.runs_on for row in report.rows}
    said = [(name, _meaning(name)) for name in names]
    said += [(name, text) for name, text in RUNTIMES.items() if name in runtimes]
    rows = "".join(
        f"<li><b>{html.escape(name)}</b>: {html.escape(text)}</li>" for name, text in said
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    about = f"{report.task}, {report.provenance.scored}, {report.provenance.machine['date']}"
    return f"<h1>{html.escape(report.model)}</h1><p>{html.escape(about)}</p><ul>{rows}</ul>" + (
        f"<p>To know:</p><ul>{notes}</ul>" if notes else ""
    )


def _meaning(name: str) -> str:
    return next((text for known, text in ROWS.items() if name.startswith(known)), "")


def _equal(report: Report) -> str:
    proofs = [row.proofs for row in report.rows if row.proofs is not None]
    if not proofs:
        return ""
    least = min(found.equal_images for found in proofs)
    return (
        f"<p>Interpreter and library of each program gave equal bits for all outputs on all "
        f"{least} images, and therefore equal metrics.</p>"
    )


def _caption(report: Report) -> str:
    command, *others = report.provenance.lines
    lines = [f"<code>{html.escape(command)}</code>", *map(html.escape, others)]
    return f"<figcaption>{'<br>'.join(lines)}</figcaption>"


def _figure(report: Report, table: Table) -> str:
    inner = f'<div class="scroll">{html_table(table)}</div>'
    return f"<figure>{inner}{_caption(report)}</figure>" if table.rows else ""


def _plot(name: str, drawn: Mapping[str, str]) -> str:
    # A plot carries its own lines, as it also goes out alone.
    return f"<figure>{drawn[name]}</figure>" if name in drawn else ""


def _nodes(report: Report, drawn: Mapping[str, str]) -> list[str]:
    if not report.nodes:
        return []
    about = (
        f"Every node of the calibrated program against the float node that it stands for, on "
        f"{report.compared} images. The worst are ringed:"
    )
    rows = [
        (str(n), node["node"], node["op"], node["source"], f"{node['sqnr_db']:.1f}")
        for n, node in enumerate(worst_nodes(report, WORST, tuple(LAYOUT)), 1)
    ]
    columns = ("", "node", "operator", "source", "SQNR, dB")
    table = Table("nodes", "The nodes that lose most", columns, tuple(rows), 4)
    return [f"<p>{about}</p>", _plot("sqnr", drawn), _figure(report, table)]


def _operators(report: Report, drawn: Mapping[str, str]) -> list[str]:
    if "operators" not in drawn:
        return []
    threads = f"{report.profiled} thread{'s' if report.profiled > 1 else ''}"
    about = (
        f"One run of the calibrated program's library on {threads}, by what a function computes; "
        "operators that a function computes together are joined by +. Between the functions lie "
        f"{report.between:.2f} ms: memory, views, and interruptions by other work."
    )
    return [f"<p>{about}</p>", _plot("operators", drawn)]


def _pictures(report: Report) -> list[str]:
    if not report.strips:
        return []
    boxes = report.task in ("detection", "multitask")
    about = "<p>Detections with a score of at least 0.5.</p>" if boxes else ""
    several = max(len(strip.panels) for strip in report.strips) > 1
    strips = [_strip(strip) if several else _cell(strip.panels[0]) for strip in report.strips]
    body = "".join(strips) if several else f'<div class="grid">{"".join(strips)}</div>'
    swatches = "".join(
        f'<span><i style="background:rgb{colour}"></i>{html.escape(name)}</span>'
        for name, colour in report.legend
    )
    legend = f'<p class="legend">{swatches}</p>' if swatches else ""
    return [about, f"<figure>{body}{legend}{_caption(report)}</figure>"]


def _strip(strip: Strip) -> str:
    return f'<div class="strip">{"".join(_cell(panel) for panel in strip.panels)}</div>'


def _cell(panel: Panel) -> str:
    data = base64.b64encode(panel.jpeg).decode()
    words = html.escape(panel.title)
    under = "".join(f"<br>{html.escape(line)}" for line in panel.caption.splitlines())
    return f'<div><img alt="{words}" src="data:image/jpeg;base64,{data}">{words}{under}</div>'


def _classes(report: Report) -> list[str]:
    return [_figure(report, class_table(report, kind)) for kind in ("iou", "ap")]


def _made(report: Report) -> str:
    origin = report.provenance
    facts = {
        "command": origin.command,
        "data": origin.scored.split(", SHA-256")[0],
        "its SHA-256": f"{origin.sha256} (names and bytes of all files that were scored)",
        "calibration": origin.calibration,
        **{key: str(origin.machine[key]) for key in ("cpu", "cores", "load", "isa", "os", "date")},
        "versions": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
    }
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items()
    )
    return f"<dl>{rows}</dl>"
