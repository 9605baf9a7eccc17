"""How `eval` scores: alone or as one of the processes of `torchrun`, from the start or going on."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iqvit.commands import screen
from iqvit.commands.outputs import require_folder
from iqvit.commands.subject import FLOAT, Subject

if TYPE_CHECKING:
    from iqvit.eval.shards import Job, Scored
    from iqvit.processes import World

USER_ERROR, INTERRUPTED = 2, 130

Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="DIR",
        help="Keep the results of images in DIR as they come, and go on from those that an "
        "interrupted run of the same evaluation has left there.",
    ),
]


class Stopped(KeyboardInterrupt):
    """SIGTERM: what torchrun sends to the others when one of its processes has ended."""


def score(
    job: "Job",
    subject: Subject,
    reference: Subject | None,
    *,
    threads: int | None,
    resume: Path | None,
    options: Mapping[str, Any] | None = None,
) -> "Scored | None":
    """All of the job; None in a process of `torchrun` that does not lead, which has no more to do.

    threads: of each process; None leaves all cores to one, and shares them between several.
    options: what the records depend on besides the models and the job's facts.
    """
    from iqvit.eval.kept import Kept
    from iqvit.eval.shards import ToldElsewhere, require_same, score_shared
    from iqvit.processes import ProcessLost, processes

    if resume is not None:
        require_folder(resume)
    with processes(gpus=False) as world, told_when_stopped(world, resume), ExitStack() as files:
        if threads is None and world.size > 1:
            threads = cores_each()
        if threads is not None:
            set_all_threads(subject, reference, threads)
        kept = None
        try:
            if world.size > 1 or resume is not None:
                key = {**identity(subject, reference), **(options or {}), **job.facts}
                require_same(key, world)
                if resume is not None:
                    kept = files.enter_context(Kept(resume, key, world.rank))
            report = files.enter_context(screen.progress())
            return score_shared(
                job, world, kept, lambda done, total: report("scoring", done, total)
            )
        except ToldElsewhere as error:
            raise typer.Exit(USER_ERROR) from error
        except ProcessLost as error:
            raise ProcessLost(f"{error}\n  {no_result(resume)}") from error


def identity(subject: Subject, reference: Subject | None) -> dict[str, Any]:
    """By which the models of an evaluation are known; of float models with the number of threads,
    on which the order of their sums depends."""
    from importlib.metadata import version

    import torch

    models = [subject] if reference is None else [subject, reference]
    floats = any(model.kind == FLOAT for model in models)
    return {
        "version of iqvit": version("iqvit"),
        "model": subject.digest(),
        "kind of model": subject.kind,
        "preprocessing": subject.preprocessing,
        "reference": None if reference is None else reference.digest(),
        "--threads": torch.get_num_threads() if floats else None,
    }


def set_all_threads(subject: Subject, reference: Subject | None, threads: int) -> None:
    """Run both on so many threads."""
    subject.set_threads(threads)
    if reference is not None and subject.kind != FLOAT:
        reference.set_threads(threads)


def cores_each() -> int:
    """Cores of this machine for each of the processes that torchrun started on it."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (here or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def no_result(resume: Path | None) -> str:
    """What a run that ended early has left."""
    then = "" if resume is None else f"; the same command goes on from what is in {resume}"
    return f"there is no result{then}"


@contextmanager
def told_when_stopped(world: "World", resume: Path | None) -> Iterator[None]:
    """Ctrl-C, and of several processes SIGTERM, end with a message of the one that leads."""

    def stop(number: int, frame: Any) -> None:
        del number, frame
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop) if world.size > 1 else None
    try:
        yield
    except KeyboardInterrupt as error:
        why = "interrupted"
        if isinstance(error, Stopped):
            why = "error: stopped from outside, as torchrun does when another process has ended"
        if world.leads:
            print(f"{why}: {no_result(resume)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
