"""The tables of the pages that restate the code: `python docs/tables.py` writes them anew.

In a page a table lies between `<!-- table NAME -->` and `<!-- end -->`; a test holds that all are
as they would be written.
"""

import re
from pathlib import Path

from iqvit.calibration.plan import DEFAULT_APPROXIMATION
from iqvit.calibration.recipe import APPROXIMATIONS, Settings
from iqvit.canonical import OPS, REMEDIES
from iqvit.ops import REGISTRY
from iqvit.tvm_backend.targets import TARGETS

HERE = Path(__file__).parent
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def canonical() -> list[tuple[str, ...]]:
    """The float operators that have integer ones."""
    rows = []
    for op in sorted(OPS.values(), key=lambda op: op.name):
        usual = DEFAULT_APPROXIMATION.get(op.name)
        names = [f"**{n}**" if n == usual else n for n in APPROXIMATIONS.get(op.name, ())]
        rows.append((f"`{op.name}`", f"`{', '.join(op.params)}`", ", ".join(names)))
    return [("operator", "arguments", "approximations (usual one in bold)"), *rows]


def remedies() -> list[tuple[str, ...]]:
    """What the error about an operator says."""
    return [
        ("not supported", "instead"),
        *((f"`{name}`", text) for name, text in sorted(REMEDIES.items())),
    ]


def settings() -> list[tuple[str, ...]]:
    """The keys of a recipe and their usual values."""
    return [("key", "usual"), *((f"`{k}`", f"`{v!r}`") for k, v in vars(Settings()).items())]


def integer() -> list[tuple[str, ...]]:
    """The integer operators, by the first line of their files."""
    rows = []
    for name, op in sorted(REGISTRY.items()):
        module = __import__(op.__module__, fromlist=["__doc__"])
        line = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        rows.append((f"[`{name}`](../iqvit/ops/{name}.py)", line.partition(": ")[2]))
    return [("operator", "what it is"), *rows]


def targets() -> list[tuple[str, ...]]:
    """What can be compiled for."""
    rows = [
        (f"`{t.name}`", t.isa.name if t.isa else "plain loops", ", ".join(t.features) or "nothing")
        for t in TARGETS.values()
    ]
    return [("target", "instruction set", "the CPU needs"), *rows]


TABLES = {table.__name__: table for table in (canonical, remedies, settings, integer, targets)}


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Rows under the first of them, as a table."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(cell for cell in line) + " |\n" for line in lines)


def renewed(page: str) -> str:
    """The page with its tables as the code has them."""
    return MARKED.sub(lambda m: m[1] + markdown(TABLES[m[2]]()) + m[3], page)


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.md")):
        path.write_text(renewed(path.read_text()))
