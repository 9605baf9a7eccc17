"""Run pyright over the package as it installs: `.typecheck/iqvit/...` is a folder of links."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "calibration", "tvm_backend", "eval", "training")


def link() -> None:
    """Make the links that stand for `package_dir` of setup.py."""
    package = ROOT / ".typecheck" / "iqvit"
    package.mkdir(parents=True, exist_ok=True)
    sources = [path for path in (ROOT / "iqvit").iterdir() if path.name != "__pycache__"]
    for source in [*sources, *(ROOT / name for name in FOLDERS)]:
        place = package / source.name
        if not place.is_symlink():
            place.symlink_to(source)


if __name__ == "__main__":
    link()
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
