"""Run pyright over the package as it installs: `.typecheck/iqvit/...` is a folder of links."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / ".typecheck"
FOLDERS = ("models", "calibration", "tvm_backend", "eval", "training")
# Beside the links, since pyright passes over folders with a dot below its configuration.
SETTINGS = {
    "include": ["iqvit"],
    "pythonVersion": "3.11",
    "typeCheckingMode": "standard",
    "reportMissingModuleSource": False,
}


def sources() -> dict[Path, Path]:
    """Every module, and where it installs below `iqvit/`."""
    found = {path: path.relative_to(ROOT / "iqvit") for path in (ROOT / "iqvit").rglob("*.py")}
    for folder in FOLDERS:
        found |= {path: path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
    return found


def link() -> None:
    """Make the links that stand for `package_dir` of setup.py: pyright follows those of files."""
    shutil.rmtree(LINKS, ignore_errors=True)
    for path, place in sources().items():
        (LINKS / "iqvit" / place).parent.mkdir(parents=True, exist_ok=True)
        (LINKS / "iqvit" / place).symlink_to(path)
    (LINKS / "pyrightconfig.json").write_text(json.dumps(SETTINGS))


def check() -> int:
    """Print what pyright finds; 0 if that is nothing, in as many files as there are."""
    command = [sys.executable, "-m", "pyright", "-p", str(LINKS), "--pythonpath", sys.executable]
    done = subprocess.run([*command, "--outputjson"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    for fault in found["generalDiagnostics"]:
        line = fault["range"]["start"]["line"] + 1
        print(f"{fault['file']}:{line}: {fault['severity']}: {fault['message']}")
    files = found["summary"]["filesAnalyzed"]
    print(f"{files} files, {found['summary']['errorCount']} errors")
    return done.returncode if files >= len(sources()) else 1


if __name__ == "__main__":
    link()
    sys.exit(check())
