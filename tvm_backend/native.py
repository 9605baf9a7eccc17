"""Artifacts in a process without Python: the runner in C, built here, and its peak of memory."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi

from iqvit.errors import TargetError
from iqvit.tvm_backend.artifact import RUNNER, read_manifest

SOURCE = Path(__file__).parent / "runner" / RUNNER
COMPILERS = ("cc", "gcc", "clang")
RUNS = 3
MEMORY = "peak_memory_kb"


def packages_here() -> dict[str, Path]:
    """The packages of TVM's runtime for this machine, as `build_runner` takes them."""
    return {"tvm": Path(str(tvm.__file__)).parent, "tvm_ffi": Path(str(tvm_ffi.__file__)).parent}


def usual_compiler() -> list[str]:
    """The C compiler of this machine: `$CC`, or the first of `COMPILERS`; `TargetError` without."""
    named = os.environ.get("CC", "").split()
    found = named or [name for name in COMPILERS if shutil.which(name) is not None][:1]
    if not found:
        raise TargetError(f"no C compiler: none of {', '.join(COMPILERS)} is installed")
    return found


def build_runner(folder: Path, compiler: Sequence[str], packages: Mapping[str, Path]) -> Path:
    """`folder`/runner, by the line that the runner's source states.

    packages: the folders `tvm` and `tvm_ffi` of the wheels for the runner's machine. Raises
    `TargetError` with the compiler's first words where it fails.
    """
    libraries = [packages[name] / "lib" for name in ("tvm", "tvm_ffi")]
    command = [*compiler, "-O2", "-o", str(folder / "runner"), str(SOURCE)]
    command += [f"-I{packages['tvm_ffi'] / 'include'}", *(f"-L{place}" for place in libraries)]
    command += ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-Wl,--allow-shlib-undefined"]
    _call([*command, "-Wl,-rpath," + ":".join(map(str, libraries))], "the runner does not build")
    return folder / "runner"


def peak_memory(runner: Path, artifact: Path, threads: int = 1) -> int:
    """Kilobytes that a process held at most, which ran an artifact on an image of noise.

    The process is the runner's: TVM's runtime and the library, no Python. Raises as `read_manifest`
    and `TargetError` where the runner fails or this system does not tell.
    """
    shape = read_manifest(artifact)["inputs"][0]["shape"]
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes()
    command = [str(runner), "-t", str(threads), "-r", str(RUNS), "-o", os.devnull]
    said = _call([*command, str(artifact), "-"], "the runner failed", frame)
    found = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
    if MEMORY not in found:
        raise TargetError("this system does not tell the memory of a process")
    return int(found[MEMORY])


def _call(command: Sequence[str], fault: str, given: bytes = b"") -> str:
    """What a command says on stderr; `TargetError` with the beginning of it where it fails."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False)
    except OSError as error:
        raise TargetError(f"{fault}: {error.strerror or error} ({command[0]})") from error
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        words = next(iter(said.strip().splitlines()), f"exit status {done.returncode}")
        raise TargetError(f"{fault}: {words}")
    return said
