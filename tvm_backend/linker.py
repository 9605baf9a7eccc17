"""Which compiler links a library for a CPU: the host's own, or a cross compiler."""

import importlib.util
import platform
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iqvit.errors import TargetError

GLIBC = "2.28"
"""What zig links against: as old as TVM's own wheels for ARM."""


def machine() -> str:
    """This machine in the words of compilers: `x86_64`, `aarch64`, or what Python says."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def linker(wanted: str | None, folder: Path) -> Callable[..., Any] | None:
    """What `export_library` links with for a `wanted` machine; None is its default, the host's g++.

    For another machine: the cross compiler of the distribution where there is one, else zig, which
    `pip install ziglang` brings. Scripts that it needs are put into `folder`.
    Raises `TargetError` where there is neither.
    """
    if wanted is None or wanted == machine():
        return None
    from tvm.support import cc

    command = cross_compiler(wanted)
    if len(command) == 1:
        return cc.cross_compiler(command[0])
    # TVM takes the path of a program, without arguments.
    script = folder / "linker"
    script.write_text("#!/bin/sh\nexec " + " ".join(f"'{part}'" for part in command) + ' "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return cc.cross_compiler(str(script))


def cross_compiler(wanted: str) -> list[str]:
    """The command of a C++ compiler for another machine; `TargetError` where there is none."""
    found = shutil.which(f"{wanted}-linux-gnu-g++")
    if found is not None:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", f"{wanted}-linux-gnu.{GLIBC}"]
    raise TargetError(
        f"there is no compiler here that links libraries for {wanted}: `pip install ziglang` (or "
        f"install your distribution's {wanted}-linux-gnu-g++)"
    )
