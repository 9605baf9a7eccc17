"""The shape of the repository: what may import what, what loads when, how long a file may be."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# folder -> the folders that it may import from, besides itself
BELOW = {
    "iqvit": set(),
    "models": {"iqvit"},
    "calibration": {"iqvit"},
    "tvm_backend": {"iqvit"},
    "eval": {"iqvit", "models", "calibration", "tvm_backend"},
    "training": {"iqvit", "models", "calibration", "tvm_backend", "eval"},
}
UPPER = set(BELOW) - {"iqvit"}
MOST_LINES = 400
HEAVY = ["torch", "torchvision", "tvm", "onnx", "onnxruntime", "timm", "transformers"]


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def product_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> list[Import]:
    return imports_in(path.read_text(), str(path.relative_to(ROOT)))


def imports_in(source: str, file: str) -> list[Import]:
    """Every import of a file; those in functions, or for type checkers, are not at module level."""
    found: list[Import] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, item.name, top) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.append(Import(file, node.lineno, module, top))
            found.extend(Import(file, node.lineno, f"{module}.{n.name}", top) for n in node.names)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            top = False
        for child in ast.iter_child_nodes(node):
            visit(child, top)

    visit(ast.parse(source), True)
    return found


def folder_of(module: str) -> str | None:
    """The folder that a module of ours lies in; None for other packages."""
    parts = module.split(".")
    if parts[0] != "iqvit":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in UPPER else "iqvit"


def may_reach_up(path: str) -> bool:
    """The command line, and the lazy public names."""
    return path in ("iqvit/cli.py", "iqvit/__init__.py") or path.startswith("iqvit/commands/")


@pytest.mark.parametrize("folder", BELOW)
def test_imports_point_downwards(folder: str):
    wrong = []
    for path in product_files(folder):
        for found in imports_of(path):
            target = folder_of(found.module)
            if target in (None, folder) or target in BELOW[folder]:
                continue
            if found.at_module_level or not may_reach_up(found.file):
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute():
    bare = [
        str(found)
        for folder in BELOW
        for path in product_files(folder)
        for found in imports_of(path)
        if found.module.startswith(".") or found.module.split(".")[0] in UPPER
    ]
    assert not bare, "\n".join(bare)


def test_tvm_stays_out_of_module_level():
    wrong = [
        str(found)
        for folder in ("iqvit", "models", "calibration", "eval", "training")
        for path in product_files(folder)
        for found in imports_of(path)
        if found.at_module_level and found.module.split(".")[0] in ("tvm", "onnx", "onnxruntime")
    ]
    wrong = [line for line in wrong if not line.startswith("iqvit/ops/te.py")]
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_iqvit_loads_nothing_heavy():
    assert not loaded_by("import iqvit") & set(HEAVY)


def test_the_core_needs_torch_only():
    core = "import iqvit.ops, iqvit.interpret, iqvit.serialize, iqvit.cost, iqvit.verify"
    assert loaded_by(core) & set(HEAVY) <= {"torch"}


@pytest.mark.parametrize("name", sorted(UPPER))
def test_bare_names_refuse(name: str):
    command = [sys.executable, "-c", f"import {name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert f"iqvit.{name}" in result.stderr


def test_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in BELOW
        for path in product_files(folder)
    }
    long = {file: lines for file, lines in lengths.items() if lines > MOST_LINES}
    assert not long, f"split these files (at most {MOST_LINES} lines): {long}"


def test_imports_are_found_and_placed():
    source = """
import tvm
from iqvit import eval
def f():
    from iqvit.models.spec import make
if TYPE_CHECKING:
    import iqvit.calibration.recipe
"""
    found = imports_in(source, "x.py")
    placed = {(item.line, folder_of(item.module), item.at_module_level) for item in found}
    assert placed == {
        (2, None, True),
        (3, "iqvit", True),
        (3, "eval", True),
        (5, "models", False),
        (7, "calibration", False),
    }
