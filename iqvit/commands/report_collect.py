"""`iqvit report`, all of it after the options: what is made, measured, looked at and written."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands import report_look as look
from iqvit.commands.quantize import COMPARED, meta_of, read_images
from iqvit.commands.report_calibration import Calibrating
from iqvit.commands.report_data import Material
from iqvit.commands.report_measure import (
    make_row,
    memory_of,
    prove_contenders,
    score_contenders,
    time_contenders,
)
from iqvit.commands.report_models import Contender, Models, make_models
from iqvit.commands.subject import FLOAT, LIBRARY, Subject
from iqvit.errors import IqvitError

if TYPE_CHECKING:
    from iqvit.calibration.recipe import Recipe
    from iqvit.canonical import CanonicalModel
    from iqvit.commands.screen import Report as Progress
    from iqvit.eval.report import Provenance, Report, Row
    from iqvit.intgraph import IntGraph
    from iqvit.models.float_model import FloatModel

PROFILE_RUNS = 20
PROGRAM = "calibrated.iqv"


@dataclass(frozen=True)
class Settings:
    """How a report is made; see the options of `iqvit report`."""

    command: str
    recipe: "Recipe"
    seed: int
    threads: Sequence[int]
    runs: int
    pictures: int | None


def write_report_of(
    output: Path,
    model: "FloatModel",
    trained: "Sequence[tuple[str, IntGraph]]",
    material: Material,
    calibrating: Calibrating,
    settings: Settings,
    progress: "Progress",
) -> "Report":
    """Make the folder; IqvitError where it cannot be written, and then nothing of it is left."""
    from iqvit.calibration.quantize import quantize_canonical
    from iqvit.eval.report_folder import write_report
    from iqvit.files import new_folder

    def program(canonical: "CanonicalModel") -> "IntGraph":
        if calibrating.graph is not None:
            return calibrating.graph
        pixels, _ = read_images(list(calibrating.paths), model, False, progress)
        meta = {**meta_of(model), "seed": settings.seed, "images_hash": calibrating.names}
        return quantize_canonical(canonical, pixels, settings.recipe, progress=progress, meta=meta)

    with work_folder() as work:
        models = make_models(model, program, trained, work, progress)
        found = collect(model, models, material, calibrating, settings, progress)
        with new_folder(output) as folder:
            write_report(folder, found)
            shutil.copyfile(models.program, folder / PROGRAM)
    return found


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for what is made on the way; IqvitError where there can be none."""
    try:
        with tempfile.TemporaryDirectory(prefix="iqvit-report-") as place:
            yield Path(place)
    except OSError as error:
        raise IqvitError(
            f"cannot work in {tempfile.gettempdir()}: {error.strerror or error}; name another "
            "folder for temporary files in TMPDIR"
        ) from error


def collect(
    model: "FloatModel",
    models: Models,
    material: Material,
    calibrating: Calibrating,
    settings: Settings,
    progress: "Progress",
) -> "Report":
    """Score, time, prove and look at the models."""
    from iqvit.eval.preprocess import load_images
    from iqvit.eval.report import Report

    contenders, threads = models.contenders, settings.threads
    real = _first(contenders, FLOAT)
    rows = measure(contenders, material, settings, progress)
    library = _first(contenders, LIBRARY)
    library.set_threads(threads[0])
    if library.folder is None:
        raise TypeError(f"{library.name} is a library without a folder")
    operators, between = look.profile_operators(library.folder, PROFILE_RUNS, progress)
    for subject in (real, library):
        subject.set_threads(max(threads))
    paths = [item.path for item in material.items]
    some = load_images(paths[:COMPARED], real.preprocess)
    return Report(
        model.name,
        model.task,
        rows,
        _provenance(material, calibrating, settings),
        _notes(model, material, calibrating),
        look.compare_nodes(models, some, model.task, progress),
        len(some),
        operators,
        between,
        threads[0],
        look.pictures(real, library, material, settings.pictures, progress),
        look.legend(real),
    )


def measure(
    contenders: Sequence[Contender], material: Material, settings: Settings, progress: "Progress"
) -> "tuple[Row, ...]":
    """A row for each contender."""
    scores = score_contenders(contenders, material, progress)
    proofs = prove_contenders(contenders, scores, settings.threads)
    times = time_contenders(contenders, settings.threads, settings.runs, progress)
    memory = memory_of(contenders, settings.threads[0])
    macs = _first(contenders, LIBRARY).facts["macs"]
    return tuple(
        make_row(
            one,
            scores[one.name],
            times.get(one.name, ()),
            proofs.get(one.name),
            memory.get(one.name),
            macs,
        )
        for one in contenders
    )


def _first(contenders: Sequence[Contender], kind: str) -> Subject:
    """The float model, or the first program of a kind, which is the calibrated one."""
    return next(one.subject for one in contenders if one.subject.kind == kind)


def _provenance(material: Material, calibrating: Calibrating, settings: Settings) -> "Provenance":
    from iqvit.eval.bench import machine
    from iqvit.eval.report import Provenance
    from iqvit.eval.traces import names_and_contents

    return Provenance(
        settings.command,
        material.place,
        names_and_contents(material.files),
        len(material.items),
        material.available,
        calibrating.told,
        machine(),
    )


def _notes(model: "FloatModel", material: Material, calibrating: Calibrating) -> tuple[str, ...]:
    notes = [*model.notes, *material.notes]
    if model.weights.startswith("random"):
        notes.append(f"The weights are {model.weights}: accuracy says nothing.")
    count, available = len(material.items), material.available
    if count < available:
        notes.append(f"{count} of {available} images were scored (--images), evenly spaced.")
    scored = {item.path.resolve() for item in material.items}
    both = sum(path.resolve() in scored for path in calibrating.paths)
    if not calibrating.paths:
        notes.append(f"Calibrated on {calibrating.told}: some of them may be scored.")
    if both:
        notes.append(f"{both} of the images that calibrated are scored, too.")
    return tuple(notes)


def said(found: "Report") -> tuple[tuple[str, ...], list[list[Any]]]:
    """Columns and rows of what is shown when all is done."""
    columns = ("model", "runs on", *found.metrics)
    timed = [f"{part}@{n}" for n in found.threads for part in ("latency_ms", "fps")]
    rows: list[list[Any]] = []
    for row in found.rows:
        times = {time.threads: (time.median_ms, time.fps) for time in row.times}
        speeds = [value for n in found.threads for value in times.get(n, (None, None))]
        metrics = [row.metrics.get(key) for key in found.metrics]
        rows.append([row.model, row.runs_on, *metrics, *speeds])
    return (*columns, *timed), rows
