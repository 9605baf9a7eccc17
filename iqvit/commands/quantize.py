"""`iqvit quantize`: a float model and images become an .iqv."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.detecting import box_agreement
from iqvit.commands.options import Classes, InputSize, Json, Seed, SkipBad, Weights
from iqvit.commands.outputs import require_file, write_metrics
from iqvit.commands.subject import DETECTION, OUTPUTS, float_subject, graph_subject, load_float
from iqvit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iqvit.calibration.recipe import Recipe
    from iqvit.canonical import CanonicalModel
    from iqvit.commands.screen import Report
    from iqvit.compare import Comparison
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

USUAL_IMAGES = 64
COMPARED = 4
"""Images on which the float and the integer values of all nodes are compared."""
MASKS = {"annotations", "gtFine"}
"""Folders of masks in the usual layouts of segmentation data."""


def quantize(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="timm:NAME, torchvision:NAME, transformers:NAME_OR_FOLDER, segmenter:FOLDER, "
            "rtdetr:FOLDER, multitask:FOLDER, embedded:scenes (weights come with iqvit), or "
            "FILE.py:FUNCTION of your own that returns an nn.Module.",
        ),
    ],
    calib: Annotated[
        Path,
        typer.Option("--calib", metavar="DIR", help="Images to calibrate on."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .iqv to write.")
    ],
    weights: Weights = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            min=1,
            help=f"How many of them; {USUAL_IMAGES}, or all where there are fewer.",
        ),
    ] = None,
    seed: Seed = 0,
    input_size: InputSize = None,
    classes: Classes = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="TOML", help="Settings; `iqvit recipe` prints the usual."),
    ] = None,
    logits: Annotated[
        bool,
        typer.Option(
            "--logits", help="Of a segmenter: end in the logits of every pixel, for windows."
        ),
    ] = False,
    skip_bad: SkipBad = False,
    json: Json = None,
) -> None:
    """Turn a float model into a program of integers, calibrated on images.

    \b
    Example:
      iqvit quantize timm:vit_tiny_patch16_224 --weights W.safetensors --calib photos/ -o model.iqv

    Prints what the program costs, its signal-to-noise ratio against float (sqnr_db; 15 to 20 is
    usual for 8 bits) and the five nodes that lose most; for a segmenter sqnr_db is of the logits,
    and agreement the percentage of pixels of the same class. For a detector sqnr_db is of boxes and
    scores of the same queries, and agreement the percentage of detections with a score of at least
    0.5 that float and integers both make; a multi-task model has both, the second as box_agreement.
    To change how a node is quantised,
    save `iqvit recipe > r.toml`, edit it and pass --recipe r.toml. Next: `iqvit inspect model.iqv`,
    then `iqvit compile model.iqv -o artifact/`.
    """
    require_file(output)
    require_file(json)
    from iqvit.calibration.recipe import Recipe, load_recipe
    from iqvit.serialize import save

    settings = Recipe() if recipe is None else load_recipe(recipe)
    begun = time.perf_counter()
    paths = calibration_images(calib, images, seed)
    model = load_float(spec, weights, input_size, classes, seed, logits=logits)
    with screen.progress() as report:
        data, skipped = read_images(paths, model, skip_bad, report)
        meta = {**meta_of(model), "seed": seed, "images_hash": names_hash(calib, paths)}
        graph, compared = quantize_model(model, data, settings, meta, report)
        report("saving", 0, 1)
        save(graph, output)
    found = metrics(graph, compared)
    if model.task in OUTPUTS:
        # The classes of the same choices are the same; what counts is what both detect.
        sides = graph_subject(graph, str(output)), float_subject(model)
        program, reference = (side.head(DETECTION) for side in sides)
        name = "agreement" if model.task == DETECTION else "box_agreement"
        found[name] = box_agreement(program, reference, data[:COMPARED])
    found |= {"skipped": skipped, "file_bytes": output.stat().st_size}
    found["seconds"] = time.perf_counter() - begun
    write_metrics(json, found)
    screen.facts({"written": str(output), **found}, f"{spec} in integers")
    columns = ("worst nodes", "sqnr_db", "largest_steps", "operator", "source")
    rows = [(r.node, r.sqnr_db, r.largest_steps, r.op, r.source) for r in compared.worst(5)]
    screen.table(columns, rows)


def calibration_images(folder: Path, count: int | None, seed: int) -> list[Path]:
    """The images that `count` and `seed` choose in a folder, the same for the same files.

    Masks are no photographs: what is below a folder `annotations` or `gtFine` is left out.
    """
    from iqvit.eval.imagenet import choose, list_images

    listed = list_images(folder)
    found = [path for path in listed if not MASKS & set(path.relative_to(folder).parts[:-1])]
    if not found:
        raise DataError(f"{folder} holds nothing but masks; name the folder of the images")
    if len(found) < len(listed):
        screen.note(f"{folder}: {len(listed) - len(found)} masks are not calibrated on")
    return choose(found, min(USUAL_IMAGES, len(found)) if count is None else count, seed)


def names_hash(folder: Path, paths: list[Path]) -> str:
    """SHA-256 of the images' names below the folder: says which ones calibrated."""
    import hashlib

    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def read_images(
    paths: list[Path], model: "FloatModel", skip_bad: bool, report: "Report"
) -> tuple["Tensor", int]:
    """uint8 [N, 3, H, W] as the model wants them, and how many could not be read."""
    import torch

    from iqvit.eval.preprocess import Preprocess, batches

    skipped: list[DataError] = []
    preprocess = Preprocess.from_dict(model.preprocessing)
    read = []
    for batch in batches(paths, preprocess, skip_bad=skip_bad, skipped=skipped):
        read.append(batch.images)
        report("reading images", len(read) + len(skipped), len(paths))
    if not read:
        raise DataError(f"none of {len(paths)} images could be read; the first: {skipped[0]}")
    for error in skipped:
        screen.note(f"skipped: {error}")
    return torch.cat(read), len(skipped)


def meta_of(model: "FloatModel") -> dict[str, Any]:
    """What the program must know of its model to be fed and understood."""
    return {
        "model": model.name,
        "weights": Path(model.weights).name,
        "task": model.task,
        "labels": list(model.labels or ()),
        "palette": [list(colour) for colour in model.palette or ()],
        **({"box_labels": list(model.box_labels)} if model.box_labels else {}),
        "preprocessing": model.preprocessing,
    }


def quantize_model(
    model: "FloatModel",
    images: "Tensor",
    recipe: "Recipe",
    meta: dict[str, Any],
    report: "Report",
) -> tuple["IntGraph", "Comparison"]:
    """The integer program, and how far it is from float on the first few of the images."""
    from iqvit.calibration.quantize import quantize_canonical
    from iqvit.compare import compare

    canonical = canonical_of(model, report)
    graph = quantize_canonical(canonical, images, recipe, progress=report, meta=meta)
    # A detector orders its queries by score, where neighbours change places: the same are compared.
    same = model.task in OUTPUTS
    return graph, compare(canonical, graph, images[:COMPARED], same_choices=same, progress=report)


def canonical_of(model: "FloatModel", report: "Report") -> "CanonicalModel":
    """The canonical float graph of a model."""
    from iqvit.canonicalize import canonicalize
    from iqvit.capture import capture

    report("capturing", 0, 1)
    captured = capture(model.module, model.input_shape, mean=model.mean, std=model.std)
    canonical = canonicalize(captured)
    report("capturing", 1, 1)
    return canonical


def metrics(graph: "IntGraph", compared: "Comparison") -> dict[str, Any]:
    """The flat metrics of a program that was just made."""
    from iqvit.cost import cost

    spent = cost(graph)
    worst = compared.worst(1)
    # Of class maps; a classifier gives scores, which sqnr_db describes.
    agreement = {"agreement": min(compared.agreement.values())} if compared.agreement else {}
    return {
        "images": graph.meta["images"],
        "sqnr_db": compared.sqnr_db,
        **agreement,
        "worst_node": worst[0].node if worst else None,
        "worst_sqnr_db": worst[0].sqnr_db if worst else None,
        "macs": spent.macs,
        "params": spent.params,
        "bytes": spent.bytes,
        "nodes": sum(spent.nodes.values()),
        "graph_hash": graph.hash,
    }
