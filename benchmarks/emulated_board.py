"""An artifact on an ARM board that qemu emulates: the runner's integers against the interpreter's.

    python benchmarks/emulated_board.py model.iqv --data images/ --images 2 --count

The runner is the C program of the artifact, without Python. The emulated CPU has what the target
needs and, for arm64-neon, no dot product. With --count also the instructions of one inference on
one thread, counted by qemu: a figure that does not depend on the machine. Needs qemu's user-mode
emulator, a C library for ARM under /usr/aarch64-linux-gnu and a cross compiler; TVM's runtime for
ARM is downloaded by pip, or is in the folder that IQVIT_ARM_RUNTIME names.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from iqvit import tvm_backend
from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.errors import DataError, TargetError
from iqvit.intgraph import IntGraph
from iqvit.tvm_backend import linker, native
from iqvit.tvm_backend.targets import TARGETS

SYSROOT = Path("/usr/aarch64-linux-gnu")
CPUS = {"arm64-i8mm": "max", "arm64-dotprod": "max", "arm64-neon": "cortex-a53"}
"""What qemu emulates for a target; a Cortex-A53 has no dot product."""
PLATFORM = "manylinux_2_28_aarch64"
PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}


@dataclass(frozen=True)
class Board:
    """An emulator, and the runner that was built for it."""

    qemu: str
    runner: Path

    def command(self, cpu: str, artifact: Path, threads: int) -> list[str]:
        """Frames from stdin, results to stdout."""
        there = [self.qemu, "-cpu", cpu, "-L", str(SYSROOT), str(self.runner)]
        return [*there, "-t", str(threads), "-o", "-", str(artifact), "-"]

    def results(self, cpu: str, artifact: Path, frames: bytes, threads: int = 2) -> bytes:
        """What the runner writes; RuntimeError with what it says where it fails."""
        command = self.command(cpu, artifact, threads)
        done = subprocess.run(command, input=frames, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return done.stdout

    def instructions(self, cpu: str, artifact: Path, frames: bytes) -> int:
        """How many instructions the runner takes on one thread, from its start to its end."""
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder) / "log"
            os.mkfifo(pipe)
            command = self.command(cpu, artifact, 1)
            command[1:1] = ["-d", "in_asm,exec,nochain", "-D", str(pipe)]
            given = Path(folder) / "frames"
            given.write_bytes(frames)
            with given.open("rb") as source:
                running = subprocess.Popen(command, stdin=source, stdout=subprocess.DEVNULL)
                with pipe.open() as log:
                    count = executed(log)
                if running.wait():
                    raise RuntimeError("the runner failed under qemu")
        return count


def executed(log: Iterable[str]) -> int:
    """The instructions that a log of qemu's `in_asm,exec,nochain` says were executed.

    Every block of code is listed when it is translated, and named whenever it is executed.
    """
    sizes: dict[int, int] = {}
    start, total = -1, 0
    for line in log:
        if line.startswith("Trace"):
            total += sizes[int(line.split("/", 2)[1], 16)]
        elif line.startswith("IN:"):
            start = -1
        elif line.startswith("0x"):
            if start < 0:
                start = int(line[: line.index(":")], 16)
                sizes[start] = 0
            sizes[start] += 1
    return total


def packages_for_arm(folder: Path) -> dict[str, Path]:
    """The packages of TVM's runtime for ARM: of IQVIT_ARM_RUNTIME, or downloaded to `folder`."""
    named = os.environ.get("IQVIT_ARM_RUNTIME")
    place = Path(named) if named else folder
    found = {name: place / name for name in PACKAGES}
    if all((package / "lib").is_dir() for package in found.values()):
        return found
    if named:
        raise TargetError(f"IQVIT_ARM_RUNTIME={named} holds no {' and '.join(PACKAGES)}")
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES.values()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, "--only-binary=:all:", "--platform", PLATFORM, *pins], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    return found


def build_runner(folder: Path, compiler: Sequence[str], packages: dict[str, Path]) -> Path:
    """The runner, where no warning passes."""
    return native.build_runner(folder, [*compiler, "-Wall", "-Wextra", "-Werror"], packages)


def board(folder: Path) -> Board:
    """The emulated board; TargetError where something that it needs is not installed."""
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        raise TargetError("qemu-aarch64 is not installed: apt install qemu-user-static")
    if not (SYSROOT / "lib").is_dir():
        raise TargetError(f"no C library for ARM in {SYSROOT}: apt install g++-aarch64-linux-gnu")
    words = linker.cross_compiler("aarch64")
    compiler = [word.replace("c++", "cc").replace("g++", "gcc") for word in words]
    return Board(qemu, build_runner(folder, compiler, packages_for_arm(folder)))


def answer(graph: IntGraph, images: np.ndarray) -> Iterator[bytes]:
    """What the runner should write for each of uint8 images [N, C, H, W]."""
    import torch

    from iqvit.interpret import evaluate

    for image in images:
        results = evaluate(graph, torch.from_numpy(image[None]))
        yield b"".join(results[name].numpy().tobytes() for name in graph.outputs)


def emulated_board(
    model: Annotated[Path, typer.Argument(metavar="MODEL.iqv")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Images to run.")],
    targets: Annotated[str, typer.Option(metavar="NAME,...")] = ",".join(CPUS),
    images: Annotated[int, typer.Option(min=1, help="How many of them.")] = 2,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    count: Annotated[
        bool, typer.Option("--count", help="Count the instructions of an inference.")
    ] = False,
    seed: int = 0,
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Compiles for ARM, runs the C runner under qemu, and compares every bit of its results."""
    require_file(json)
    names = targets.split(",")
    unknown = [name for name in names if name not in CPUS]
    if unknown:
        raise DataError(f"no target {', '.join(unknown)} for ARM; there are {', '.join(CPUS)}")
    from iqvit.eval.imagenet import choose, list_images
    from iqvit.eval.preprocess import Preprocess, load_images
    from iqvit.serialize import load
    from iqvit.tvm_backend.cache import usual_cache

    graph = load(model)
    read = Preprocess.from_dict(graph.meta["preprocessing"])
    pixels = load_images(choose(list_images(data), images, seed), read).numpy()
    frames = [image.transpose(1, 2, 0).tobytes() for image in pixels]
    wanted = b"".join(answer(graph, pixels))
    found: dict[str, object] = {"model": str(model), "images": len(frames)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        here = board(folder)
        for name in names:
            made = tvm_backend.compile(
                graph, folder / name, TARGETS[name], input_layout="nhwc", cache=usual_cache()
            )
            got = here.results(CPUS[name], made, b"".join(frames), threads)
            found[f"equal@{name}"] = int(got == wanted)
            if count:
                ends = [here.instructions(CPUS[name], made, frames[0] * n) for n in (1, 2)]
                found[f"instructions@{name}"] = ends[1] - ends[0]
    write_metrics(json, found)
    screen.facts(found)
    sys.exit(0 if all(v for k, v in found.items() if k.startswith("equal")) else 1)


if __name__ == "__main__":
    typer.run(guarded(emulated_board))
