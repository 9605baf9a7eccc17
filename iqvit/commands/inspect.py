"""`iqvit inspect`: what is in an .iqv or an artifact."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.options import Json
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.errors import FileFormatError

if TYPE_CHECKING:
    from iqvit.cost import Cost
    from iqvit.intgraph import IntGraph
    from iqvit.verify import Proof

NONLINEAR = frozenset(
    (
        "attention",
        "exp2",
        "igelu",
        "ilayernorm",
        "isoftmax",
        "layernorm",
        "lookup",
        "rectified",
        "shiftexp",
        "shiftgelu",
        "shiftmax",
        "softmax",
    )
)
"""Operators that stand for a function of the reals which integers can only approach."""
TIGHTEST = 5


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .iqv or an artifact folder.")],
    nodes: Annotated[bool, typer.Option("--nodes", help="Every node with its range.")] = False,
    text: Annotated[bool, typer.Option("--text", help="The program as text, alone.")] = False,
    json: Json = None,
) -> None:
    """Show a program: its cost, its widths, and what was proved of it.

    \b
    Examples:
      iqvit inspect model.iqv
      iqvit inspect model.iqv --nodes | sort -k7 -n | head
      iqvit inspect model.iqv --text > model.txt

    The proofs are done anew: every value and every accumulator lies in its type for every image
    there can be, and no type is a float. An accumulator's head-room is how often its range could
    double and still fit. Of an artifact the manifest is shown, and every function of its library
    is disassembled and searched for float instructions; none of its code is run.
    """
    require_file(json)
    if model.is_dir():
        if nodes or text:
            raise FileFormatError(f"{model} is compiled; --nodes and --text are for its .iqv")
        _show_artifact(model, json)
        return
    from iqvit.cost import cost
    from iqvit.serialize import load
    from iqvit.text import print_graph
    from iqvit.verify import prove

    graph = load(model)
    if text:
        print(print_graph(graph), end="")
        return
    proofs, spent = prove(graph), cost(graph)
    write_metrics(json, _metrics(graph, spent, proofs, model))
    if nodes:
        screen.table(*_node_table(graph, proofs))
        return
    _show_graph(graph, spent, proofs, model)


def _metrics(graph: "IntGraph", spent: "Cost", proofs: "list[Proof]", path: Path) -> dict[str, Any]:
    from iqvit.verify import tightest

    least = tightest(proofs)
    return {
        "macs": spent.macs,
        "eight_bit_share": 100 * spent.eight_bit_share,
        "params": spent.params,
        "bytes": spent.bytes,
        "peak_bytes": spent.peak_bytes,
        "file_bytes": path.stat().st_size,
        "nodes": sum(spent.nodes.values()),
        "proofs": len(proofs),
        "accumulators": sum(proof.what == "accumulator" for proof in proofs),
        "headroom_bits": None if least is None else least.headroom_bits,
        "float_types": 0,
        "graph_hash": graph.hash,
    }


def _show_graph(graph: "IntGraph", spent: "Cost", proofs: "list[Proof]", path: Path) -> None:
    meta = graph.meta
    about = {
        "model": meta.get("model"),
        "input": str(graph.input.type),
        **{f"output {name}": str(graph[n].type) for name, n in graph.outputs.items()},
        "calibrated on": f"{meta.get('images', '?')} images",
    }
    screen.facts({**about, **_metrics(graph, spent, proofs, path)}, str(path))
    print()
    rows = [(name, n, spent.macs_by_op.get(name, 0)) for name, n in spent.nodes.items()]
    screen.table(("operator", "nodes", "macs"), rows)
    print()
    widths = Counter(proof.dtype for proof in proofs if proof.what == "value")
    screen.table(("width", "values"), sorted(widths.items()))
    print()
    used = {name: n for name, n in spent.nodes.items() if name in NONLINEAR}
    screen.facts(
        {
            "approximations": ", ".join(f"{name} x{n}" for name, n in used.items()) or "none",
            "float types": "none",
        }
    )
    print()
    accumulators = [proof for proof in proofs if proof.what == "accumulator"]
    tight = sorted(accumulators, key=lambda proof: proof.headroom_bits)[:TIGHTEST]
    rows = [(p.node, p.lo, p.hi, p.dtype, p.headroom_bits, graph[p.node].source) for p in tight]
    screen.table(("tightest accumulators", "lo", "hi", "in", "headroom_bits", "source"), rows)


def _node_table(
    graph: "IntGraph", proofs: "list[Proof]"
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    accumulators = {proof.node: proof for proof in proofs if proof.what == "accumulator"}
    rows = []
    for node in graph:
        kind = node.type
        proof = accumulators.get(node.name)
        rows.append(
            (
                node.name,
                node.op.NAME,
                f"{kind.dtype}[{','.join(map(str, kind.shape))}]",
                kind.lo,
                kind.hi,
                node.op.macs(*graph.types_of(node)),
                None if proof is None else proof.headroom_bits,
                node.source,
            )
        )
    columns = ("node", "operator", "type", "lo", "hi", "macs", "headroom_bits", "source")
    return columns, rows


def _show_artifact(folder: Path, json: Path | None) -> None:
    from iqvit.tvm_backend.artifact import LIBRARY, read_manifest
    from iqvit.tvm_backend.machine_code import machine_code
    from iqvit.tvm_backend.targets import missing_features

    manifest = read_manifest(folder)
    code = machine_code(folder / LIBRARY)
    missing = missing_features(manifest["target"]["features"])
    metrics = {
        "macs": manifest.get("macs"),
        "params": manifest.get("params"),
        "file_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "target": manifest["target"]["name"],
        "graph_hash": manifest["graph_hash"],
        "instructions": code.instructions,
        "float_instructions": len(code.found),
    }
    write_metrics(json, metrics)
    tensors = {
        f"{kind} {t['name']}": f"{t['dtype']}[{','.join(map(str, t['shape']))}]"
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for t in manifest[key]
    }
    versions = {f"made by {name}": version for name, version in manifest["versions"].items()}
    runs = "yes" if not missing else f"no, it lacks {', '.join(missing)}"
    kernels = {f"kernel {name}": steps for name, steps in manifest.get("kernels", {}).items()}
    shown = {**metrics, "float_instructions": code.summary}
    about = {**shown, **tensors, "runs on this CPU": runs, **kernels, **versions}
    screen.facts(about, str(folder))
