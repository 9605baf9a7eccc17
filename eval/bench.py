"""Latency of several models in one process, run by run in turn, and the machine it was taken on."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from iqvit.errors import IqvitError

__all__ = [
    "BenchError",
    "bench",
    "machine",
    "percentile",
]

FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512vbmi",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""CPU features, as the kernel spells them, that decide how fast 8-bit products are."""
PACKAGES = ("iqvit", "torch", "torchvision", "apache-tvm", "timm", "onnxruntime", "openvino")
SETTLE_SECONDS = 0.005
"""Idle time before a turn: the thread pool of the model before still spins for a few ms."""


class BenchError(IqvitError):
    """A benchmark that measures nothing: no models, or impossible counts."""


def bench(
    models: Mapping[str, Callable[[Any], Any]],
    make_input: Callable[[str], Any],
    *,
    threads: Sequence[int] = (1,),
    runs: int = 50,
    warmup: int = 5,
    batch: int = 1,
    set_threads: Mapping[str, Callable[[int], None]] | None = None,
    fewer: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row for each number of threads and model, in the order given.

    `models[name](make_input(name))` is one call. The models take turns, so that a change of clock
    or load meets all of them; the one that starts a round changes. A turn is a short pause, one
    call that is not timed (it wakes the model's threads and fills the caches that the others
    emptied) and one that is. `set_threads[name](n)` is called before each turn, where given:
    torch keeps one setting for the whole process, so it must be said again after another model.
    `fewer[name]` is a smaller number of runs, spread evenly over the rounds, for a model whose call
    takes seconds: it has no warm-up and no calls that are not timed.

    Row: model, threads, runs, latency_ms (median), latency_p90_ms, latency_min_ms (milliseconds of
    one call of `batch` images), fps (images a second, from the median). Raises `BenchError` where
    there is nothing to measure.
    """
    wanted = dict.fromkeys(models, runs) | dict(fewer or {})
    least = min((runs, batch, *wanted.values(), *threads), default=0)
    if not models or least < 1 or warmup < 0 or not threads or max(wanted.values()) > runs:
        raise BenchError(
            f"nothing to measure: {len(models)} models, threads {list(threads)}, {runs} runs, "
            f"{warmup} warm-up runs, batch {batch}, of some fewer runs {dict(fewer or {})}"
        )
    inputs = {name: make_input(name) for name in models}
    setters = {} if set_threads is None else set_threads
    total, done = len(threads) * (warmup + runs), 0
    rows = []
    for count in threads:
        times: dict[str, list[float]] = {name: [] for name in models}
        for run in range(warmup + runs):
            for name in _turn(list(models), run):
                few = wanted[name] < runs
                if few and not _has_turn(run - warmup, runs, wanted[name]):
                    continue
                if name in setters:
                    setters[name](count)
                seconds = _timed(models[name], inputs[name], wake=not few)
                if run >= warmup:
                    times[name].append(seconds)
            done += 1
            if progress is not None:
                progress(done, total)
        rows += [_row(name, count, times[name], batch) for name in models]
    return rows


def machine() -> dict[str, Any]:
    """The CPU, its cores that this process may use, 8-bit features, versions, load and date.

    Flat, plain JSON values: a measurement without them cannot be compared with another.
    """
    info = _cpuinfo()
    model = info.get("model name") or info.get("CPU part") or platform.processor()
    features = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "isa": ",".join(flag for flag in FLAGS if flag in features),
        "arch": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"version_{name.replace('-', '_')}": found for name, found in _versions()},
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value at `share` (0..1) of the sorted values, interpolated between neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _turn(names: list[str], run: int) -> list[str]:
    first = run % len(names)
    return names[first:] + names[:first]


def _has_turn(run: int, runs: int, wanted: int) -> bool:
    """Whether one of `wanted` runs is in round `run` of so many."""
    return run >= 0 and (run + 1) * wanted // runs > run * wanted // runs


def _timed(model: Callable[[Any], Any], x: Any, wake: bool) -> float:
    time.sleep(SETTLE_SECONDS)
    if wake:
        model(x)
    start = time.perf_counter()
    model(x)
    return time.perf_counter() - start


def _row(name: str, threads: int, seconds: list[float], batch: int) -> dict[str, Any]:
    median = percentile(seconds, 0.5)
    return {
        "model": name,
        "threads": threads,
        "runs": len(seconds),
        "latency_ms": 1e3 * median,
        "latency_p90_ms": 1e3 * percentile(seconds, 0.9),
        "latency_min_ms": 1e3 * min(seconds),
        "fps": batch / median,
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _cores() -> int:
    return os.cpu_count() or 1


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
