"""`iqvit compile`: an .iqv becomes a library for one kind of CPU."""

import time
from pathlib import Path
from typing import Annotated

import typer

from iqvit.commands import screen
from iqvit.commands.options import Json
from iqvit.commands.outputs import require_file, require_folder, write_metrics
from iqvit.errors import FileFormatError


def compile_graph(
    model: Annotated[Path, typer.Argument(metavar="MODEL.iqv", help="Made by `iqvit quantize`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The artifact folder to write.")
    ],
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="`iqvit targets` lists them.")
    ] = "host",
    input_layout: Annotated[
        str,
        typer.Option(
            "--input-layout", metavar="nchw|nhwc", help="nhwc: frames as cameras give them."
        ),
    ] = "nchw",
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="TASK",
            help="Of a multi-task program only this one: segmentation or detection.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--no-cache", help="Compile even what was compiled before.")
    ] = False,
    json: Json = None,
) -> None:
    """Compile an .iqv with TVM into an artifact folder: model.so, manifest.json and a runner in C.

    \b
    Examples:
      iqvit compile model.iqv --target host -o artifact/
      iqvit compile model.iqv --target arm64-dotprod --input-layout nhwc -o board/
      iqvit compile multitask.iqv --head segmentation -o maps/

    The lowered program is checked to hold no float type, and the library's machine code to hold no
    float instruction. An artifact that is there already is replaced; anything else is left alone.
    The same program is compiled once for a target: copies are kept in ~/.cache/iqvit, or where
    IQVIT_CACHE says (`off`: nowhere), and `cached` says that this is one.
    Next: `iqvit predict artifact/ photo.jpg`, `iqvit bench artifact/`. For a board `pip install
    ziglang` links for ARM here, and runner.c in the artifact runs there without Python.
    """
    require_file(json)
    require_folder(output)
    require_replaceable(output)
    from iqvit.cost import cost
    from iqvit.heads import keep_head
    from iqvit.serialize import load
    from iqvit.tvm_backend.artifact import read_manifest
    from iqvit.tvm_backend.cache import usual_cache
    from iqvit.tvm_backend.targets import resolve

    chosen = resolve(target)
    begun = time.perf_counter()
    graph = load(model) if head is None else keep_head(load(model), head)
    from iqvit import tvm_backend

    stages: list[str] = []
    with screen.progress() as report, screen.staged(report) as begin:

        def tell(stage: str) -> None:
            stages.append(stage)
            begin(stage)

        cache = None if fresh else usual_cache()
        tvm_backend.compile(graph, output, chosen, tell, input_layout, cache)
    spent, code = cost(graph), read_manifest(output)["machine_code"]
    found = {
        "target": chosen.name,
        "macs": spent.macs,
        "params": spent.params,
        "bytes": spent.bytes,
        "file_bytes": sum(file.stat().st_size for file in output.iterdir()),
        "graph_hash": graph.hash,
        **{key: code[key] for key in ("instructions", "float_instructions")},
        "cached": int(stages == ["cached"]),
        "seconds": time.perf_counter() - begun,
    }
    write_metrics(json, found)
    screen.facts({"written": str(output), **found}, f"{model} compiled")


def require_replaceable(folder: Path) -> None:
    """`FileFormatError` where something else than an artifact lies at `folder`."""
    from iqvit.tvm_backend.artifact import FILES

    if not folder.exists():
        return
    if not folder.is_dir() or {e.name for e in folder.iterdir()} - FILES:
        raise FileFormatError(f"{folder} exists and is not an artifact; remove it or name another")
