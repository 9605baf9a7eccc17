"""`iqvit bench --rpc`: artifacts timed on a board."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.errors import DataError

if TYPE_CHECKING:
    from iqvit.commands.screen import Report


def measure_board(
    models: Sequence[str], address: str, threads: Sequence[int], runs: int, report: "Report"
) -> list[dict[str, Any]]:
    """One row for each number of threads and artifact, timed on the board at `HOST:PORT`.

    Raises `DataError` for a model that is no artifact, `TargetError` where the board does not
    answer or cannot load one.
    """
    from iqvit.eval.bench import percentile
    from iqvit.tvm_backend.remote import Board

    for model in models:
        if not Path(model).is_dir():
            raise DataError(
                f"{model} is no artifact: a board times what `iqvit compile --target` makes for it"
            )
    rows = []
    with Board(address) as board:
        opened = {model: board.open(Path(model)) for model in models}
        for place, count in enumerate(threads):
            for model, artifact in opened.items():
                times = artifact.time(count, runs)
                median = percentile(times, 0.5)
                row: dict[str, Any] = {
                    "model": model,
                    "kind": "board",
                    "threads": count,
                    "runs": runs,
                    "latency_ms": median,
                    "latency_p90_ms": percentile(times, 0.9),
                    "latency_min_ms": min(times),
                    "fps": 1e3 / median,
                }
                macs = artifact.manifest.get("macs")
                if macs is not None:
                    row |= {"macs": macs, "gmacs_per_s": macs / median / 1e6}
                rows.append(row)
            report(f"timing at {address}", place + 1, len(threads))
    return rows
