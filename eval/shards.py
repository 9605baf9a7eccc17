"""An evaluation in units, by one process or several, whose results are the same to the last bit.

Every unit is scored by itself into a record of plain JSON values; the metrics are made of all of
them in the order of the units, in one process. So it does not matter which process scored a unit,
or when.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iqvit.errors import DataError, IqvitError
from iqvit.eval.kept import Kept, differing
from iqvit.processes import World

Record = Any
"""What is known of a unit: None, numbers, texts, and lists and dicts (by text) of them."""
TOGETHER = 16
"""Units that a process scores before all of them ask each other whether they are well."""


class Job(Protocol):
    """An evaluation. images: how many; unit: how many of them are scored together, the last ones
    perhaps fewer. facts: all that its records depend on besides the models, in JSON values."""

    images: int
    unit: int

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def score(self, unit: int) -> Record: ...


@dataclass(frozen=True)
class Scored:
    """The records of all units in their order, and the seconds that it took this time."""

    records: list[Record]
    seconds: float


class ToldElsewhere(IqvitError):
    """An error that another process of the run tells the user about."""


def score_all(job: Job, progress: Callable[[int, int], None] | None = None) -> Scored:
    """Every unit, here; progress(images done, images) is called after each."""
    return _here(job, None, progress)


def score_shared(
    job: Job,
    world: World,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored | None:
    """Every unit, each by one of the processes; None in those that do not lead.

    kept: records of an interrupted run are not made again, and new ones are added. Where a process
    fails, all stop: the one that leads raises IqvitError with its message, the others
    `ToldElsewhere`. One that is gone is noticed by the others (`ProcessLost`), so that there is
    never a result of a part of the data.
    """
    if world.size == 1:
        return _here(job, kept, progress)
    begun = time.perf_counter()
    found = {} if kept is None else kept.records
    holders = _holders(found, world)
    todo = [unit for unit in range(units(job)) if unit not in holders]
    mine = todo[world.rank :: world.size]
    own = {unit: found[unit] for unit, holder in holders.items() if holder == world.rank}
    rounds = math.ceil(len(todo) / world.size)
    failed: list[str] = []
    for turn in range(rounds):
        if turn < len(mine) and not failed:
            try:
                own[mine[turn]] = _score(job, mine[turn], kept)
            except IqvitError as error:
                failed.append(f"{error}")
        if (turn + 1) % TOGETHER == 0 or turn + 1 == rounds:
            _require_all_well(failed, world)
        if progress is not None:
            done = len(holders) + min((turn + 1) * world.size, len(todo))
            progress(_images(job, done), job.images)
    texts = world.collect(json.dumps(list(own.items())).encode())
    if not world.leads:
        return None
    records = {unit: record for text in texts for unit, record in json.loads(text)}
    return _ordered(job, records, begun)


def require_same(key: Mapping[str, Any], world: World) -> None:
    """IqvitError unless all processes evaluate the same."""
    keys = world.gather([dict(key)])
    for rank, other in enumerate(keys):
        if differing(keys[0], other):
            message = (
                f"process {rank} was given something else to evaluate than process 0: it differs "
                f"in {', '.join(differing(keys[0], other))}"
            )
            raise IqvitError(message) if world.leads else ToldElsewhere(message)


def units(job: Job) -> int:
    """How many there are."""
    return math.ceil(job.images / job.unit)


def _here(job: Job, kept: Kept | None, progress: Callable[[int, int], None] | None) -> Scored:
    begun = time.perf_counter()
    records = {} if kept is None else dict(kept.records)
    for unit in range(units(job)):
        if unit not in records:
            records[unit] = _score(job, unit, kept)
        if progress is not None:
            progress(_images(job, unit + 1), job.images)
    return _ordered(job, records, begun)


def _score(job: Job, unit: int, kept: Kept | None) -> Record:
    record = job.score(unit)
    if kept is not None:
        kept.add(unit, record)
    return record


def _images(job: Job, done: int) -> int:
    return min(done * job.unit, job.images)


def _ordered(job: Job, records: Mapping[int, Record], begun: float) -> Scored:
    lacking = [unit for unit in range(units(job)) if unit not in records]
    if lacking:
        raise DataError(f"{len(lacking)} of {units(job)} parts of the data were not scored")
    ordered = [records[unit] for unit in range(units(job))]
    return Scored(ordered, time.perf_counter() - begun)


def _holders(found: Mapping[int, Record], world: World) -> dict[int, int]:
    """Which process answers for each unit that any has: the first of those that have it."""
    lists: Sequence[list[int]] = world.gather([sorted(found)])
    holders: dict[int, int] = {}
    for rank, known in enumerate(lists):
        for unit in known:
            holders.setdefault(unit, rank)
    return holders


def _require_all_well(failed: list[str], world: World) -> None:
    told = [
        f"process {rank}: {message}"
        for rank, messages in enumerate(world.gather([failed]))
        for message in messages
    ]
    if told:
        raise IqvitError(told[0]) if world.leads else ToldElsewhere(told[0])
