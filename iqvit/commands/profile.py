"""Where the time of an artifact goes, function by function."""

import time
from pathlib import Path
from typing import Any

RUNS = 20
BUILTIN = "vm.builtin"
"""The virtual machine's own work (memory, checks), summed in one row."""


def profile(folder: Path, shape: tuple[int, ...]) -> list[tuple[str, int, float, float]]:
    """Rows (function, calls, milliseconds, percent) of one image, the slowest function first.

    The median of `RUNS` runs; the instrument itself costs about a microsecond a call.
    """
    import tvm

    from iqvit.commands.subject import random_image
    from iqvit.tvm_backend.runtime import open_library

    machine = open_library(folder)
    image = tvm.runtime.tensor(random_image(shape).numpy())
    machine["main"](image)
    totals: list[dict[str, float]] = []
    calls: dict[str, int] = {}
    begun = [0.0]

    def instrument(_function: object, symbol: str, before: bool, *_rest: object) -> int:
        name = BUILTIN if symbol.startswith(BUILTIN) else symbol
        if before:
            if len(totals) == 1:
                calls[name] = calls.get(name, 0) + 1
            begun[0] = time.perf_counter()
        else:
            totals[-1][name] = totals[-1].get(name, 0.0) + time.perf_counter() - begun[0]
        return 0

    instrument_any: Any = instrument
    machine.set_instrument(instrument_any)
    for _ in range(RUNS):
        totals.append({})
        machine["main"](image)
    medians = {name: sorted(run[name] for run in totals)[RUNS // 2] for name in calls}
    whole = sum(medians.values())
    ranked = sorted(medians.items(), key=lambda item: -item[1])
    return [(name, calls[name], 1e3 * s, 100 * s / whole) for name, s in ranked]
