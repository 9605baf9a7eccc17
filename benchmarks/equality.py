"""One meaning: the interpreter and the libraries of several targets, compared bit for bit.

    python benchmarks/equality.py model.iqv --data DIR --images 200 --targets portable,host \
        --threads 1,2

Every output of every image must be equal, on the given images and on random ones; the exit code is
1 where one is not.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track

from iqvit.commands.outputs import write_metrics
from iqvit.eval.imagenet import choose, list_images
from iqvit.eval.preprocess import Preprocess, load_images
from iqvit.interpret import run
from iqvit.serialize import load as load_graph
from iqvit.tvm_backend import compile as compile_library
from iqvit.tvm_backend import load


def main(
    model: Path,
    data: Annotated[Path, typer.Option()],
    images: int = 200,
    noise: Annotated[int, typer.Option(help="Random uint8 images besides.")] = 20,
    targets: str = "portable,host",
    threads: str = "1,2",
    seed: int = 0,
    json: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Compare all programs on all images; prints a line for each target and number of threads."""
    graph = load_graph(model)
    preprocess = Preprocess.from_dict(graph.meta["preprocessing"])
    real = load_images(choose(list_images(data), images, seed), preprocess)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (noise, *real.shape[1:]), generator=generator, dtype=torch.uint8)
    x = torch.cat([real, drawn])
    wanted = [run(graph, image[None]) for image in _shown(x, "interpreter")]
    found: dict[str, object] = {"images": images, "noise": noise}
    for target in targets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            artifact = compile_library(graph, Path(folder) / "artifact", target=target)
            for count in map(int, threads.split(",")):
                library = load(artifact, threads=count)
                pairs = zip(_shown(x, f"{target}, {count}"), wanted, strict=True)
                unequal = sum(not _equal(library(image[None]), want) for image, want in pairs)
                print(f"{target}, {count} threads: {unequal} of {len(x)} unequal", flush=True)
                found[f"unequal@{target}@{count}"] = unequal
    write_metrics(json, found)
    sys.exit(1 if any(v for k, v in found.items() if k.startswith("unequal")) else 0)


def _shown(x: torch.Tensor, what: str):
    return track(x, what, disable=not sys.stderr.isatty())


def _equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(got[name], wanted[name]) for name in wanted)


if __name__ == "__main__":
    typer.run(main)
