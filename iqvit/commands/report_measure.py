"""What `iqvit report` measures: metrics, equality, latency, memory, proofs."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.commands.bench import take_turns
from iqvit.commands.report_data import Material, outcome
from iqvit.commands.report_models import Contender
from iqvit.commands.subject import (
    FLOAT,
    INTERPRETER,
    LIBRARY,
    MIXED,
    OUTPUTS,
    Subject,
    random_image,
)
from iqvit.errors import GraphError, TargetError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report as Progress
    from iqvit.eval.report import Proofs, Row, Timing
    from iqvit.eval.report_scores import Traced

NOT_TIMED = "evaluated in PyTorch only, no compiled program of it: no latency, no file of its own"
NEEDS_PYTHON = "runs in Python"
REFERENCE = "what the others are compared with"
SLOW_SECONDS = 6.0
"""How long a model may be timed at each number of threads that is not made to be fast."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The scores of a contender, and the digest of its answers (None of floats)."""

    metrics: dict[str, Any]
    classes: dict[str, dict[str, Any]]
    traced: "Traced[Any] | None"


def score_contenders(
    contenders: Sequence[Contender], material: Material, progress: "Progress"
) -> dict[str, Measured]:
    """All on the same images; `GraphError` where interpreter and library of a program differ."""
    from iqvit.eval.report_scores import Remembered, score_together

    real = next(one.subject for one in contenders if one.subject.kind == FLOAT)
    shared = _wrapped(real, Remembered)
    jobs, traces = {}, {}
    for one in contenders:
        if one.subject.kind == FLOAT:
            jobs[one.name] = material.job(shared, None)
            continue
        subject, traces[one.name] = _traced(one.subject)
        jobs[one.name] = material.job(subject, shared)
    scored = score_together(jobs, lambda done, total: progress("scoring", done, total))
    found = {}
    for name, job in jobs.items():
        metrics, classes = outcome(job, scored[name])
        found[name] = Measured(metrics, classes, traces.get(name))
    _require_equal(contenders, found)
    return found


def _wrapped(subject: Subject, kind: Any) -> Subject:
    run = subject.outputs
    return replace(subject, scores=kind(subject.scores), outputs=None if run is None else kind(run))


def _traced(subject: Subject) -> "tuple[Subject, Traced[Any]]":
    """The subject with a digest of what its task asks it for."""
    from iqvit.eval.report_scores import Traced

    if subject.outputs is None or subject.task not in OUTPUTS:
        traced: Traced[Any] = Traced(subject.scores)
        return replace(subject, scores=traced), traced
    traced = Traced(subject.outputs)
    return replace(subject, outputs=traced), traced


def _require_equal(contenders: Sequence[Contender], found: Mapping[str, Measured]) -> None:
    """`GraphError` unless both runtimes of every program gave the same bits."""
    for one, other in _pairs(contenders):
        traces = [found[side.name].traced for side in (one, other)]
        digests = {traced.sha256.hexdigest() for traced in traces if traced is not None}
        if len(digests) > 1:
            raise GraphError(
                f"{one.model}: interpreter and library give different integers; this is a defect "
                "of iqvit, please report it with the model and `iqvit inspect` of its program"
            )


def _pairs(contenders: Sequence[Contender]) -> list[tuple[Contender, Contender]]:
    interpreted = {c.model: c for c in contenders if c.subject.kind == INTERPRETER}
    return [(interpreted[c.model], c) for c in contenders if c.subject.kind == LIBRARY]


def time_contenders(
    contenders: Sequence[Contender], threads: Sequence[int], runs: int, progress: "Progress"
) -> "dict[str, tuple[Timing, ...]]":
    """All but mixed precision in turns; interpreters for fewer runs, as they are slow."""
    from iqvit.eval.report import Timing

    timed = {one.name: one.subject for one in contenders if one.subject.kind != MIXED}
    fewer = {}
    for name, subject in timed.items():
        if subject.kind == INTERPRETER:
            begun = time.perf_counter()
            subject.call(subject.example())
            seconds = time.perf_counter() - begun
            fewer[name] = max(1, min(runs, int(SLOW_SECONDS / seconds)))
    found: dict[str, list[Timing]] = {name: [] for name in timed}
    for row in take_turns(timed, threads, runs, progress, fewer):
        timing = Timing(
            row["threads"],
            row["latency_ms"],
            row["latency_min_ms"],
            row["latency_p90_ms"],
            row["fps"],
            row["runs"],
        )
        found[row["model"]].append(timing)
    return {name: tuple(times) for name, times in found.items()}


def prove_contenders(
    contenders: Sequence[Contender], measured: Mapping[str, Measured], threads: Sequence[int]
) -> "dict[str, Proofs]":
    """The proofs of every integer program done anew, for both of its runtimes."""
    from iqvit.eval.report import Proofs
    from iqvit.tvm_backend.artifact import LIBRARY as FILE
    from iqvit.tvm_backend.machine_code import assert_no_float_code
    from iqvit.verify import prove, tightest

    found = {}
    for one, library in _pairs(contenders):
        if one.graph is None or library.subject.folder is None:
            continue
        proofs = prove(one.graph)
        least = tightest(proofs)
        require_equal_at(one, library, threads)
        traced = measured[library.name].traced
        known = Proofs(
            len(proofs),
            sum(proof.what == "accumulator" for proof in proofs),
            "" if least is None else least.node,
            None if least is None else least.headroom_bits,
            0 if traced is None else traced.images,
            tuple(threads),
        )
        code = assert_no_float_code(library.subject.folder / FILE)
        found[one.name] = known
        found[library.name] = replace(
            known, instructions=code.instructions, float_instructions=len(code.found)
        )
    return found


def require_equal_at(one: Contender, library: Contender, threads: Sequence[int]) -> None:
    """`GraphError` unless the library gives the interpreter's bits at these numbers of threads, for
    an image of noise."""
    noise = random_image(one.subject.input_shape)
    expected = one.subject.scores(noise)
    for count in threads:
        library.subject.set_threads(count)
        if not library.subject.scores(noise).equal(expected):
            raise GraphError(f"{one.model}: interpreter and library differ on {count} threads")


def memory_of(contenders: Sequence[Contender], threads: int) -> dict[str, int | str]:
    """Kilobytes of the runner's process for every library, or why that is not known."""
    from iqvit.tvm_backend import native

    found: dict[str, int | str] = {}
    with tempfile.TemporaryDirectory() as place:
        runner: Path | str
        try:
            packages = native.packages_here()
            runner = native.build_runner(Path(place), native.usual_compiler(), packages)
        except TargetError as error:
            runner = str(error)
        for one in contenders:
            folder = one.subject.folder
            if folder is None:
                continue
            try:
                found[one.name] = (
                    runner
                    if isinstance(runner, str)
                    else native.peak_memory(runner, folder, threads)
                )
            except TargetError as error:
                found[one.name] = str(error)
    return found


def make_row(
    one: Contender,
    measured: Measured,
    times: "tuple[Timing, ...]",
    proofs: "Proofs | None",
    memory: int | str | None,
    macs: int,
) -> "Row":
    """All of a contender together; macs are those of the calibrated program."""
    from iqvit.cost import cost
    from iqvit.eval.report import Row

    dashes: dict[str, str] = {}
    if one.subject.kind == FLOAT:
        dashes |= dict.fromkeys(
            ("equal_classes", "equal_detections", "equal_pixels", "sqnr_db"), REFERENCE
        )
    if one.subject.kind == MIXED:
        dashes |= dict.fromkeys(("times", "file_bytes", "memory_kb"), NOT_TIMED)
    if isinstance(memory, str):
        dashes["memory_kb"] = memory
    dashes.setdefault("memory_kb", NEEDS_PYTHON)
    spent = None if one.graph is None else cost(one.graph)
    share = 100.0 * one.mixed.integer_share if one.mixed is not None else 0.0
    facts = one.subject.facts
    return Row(
        one.model,
        one.runs_on,
        measured.metrics,
        measured.classes,
        times,
        params=facts.get("params"),
        macs=macs,
        integer_share=share if spent is None else 100.0,
        eight_bit_share=None if spent is None else 100 * spent.eight_bit_share,
        file_bytes=one.file_bytes,
        memory_kb=memory if isinstance(memory, int) else None,
        proofs=proofs,
        dashes=dashes,
    )
