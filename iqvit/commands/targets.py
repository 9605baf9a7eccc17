"""`iqvit targets`: which CPUs can be compiled for."""

from iqvit.commands import screen


def targets() -> None:
    """List the names for `iqvit compile --target`, and which of them this CPU runs.

    `host`, the usual, is the first in the list that this CPU runs.
    """
    from iqvit.tvm_backend.targets import HOST, TARGETS, cpu_name, missing_features, resolve

    host = resolve(HOST).name
    rows = []
    for target in TARGETS.values():
        missing = missing_features(target.features)
        runs = "host" if target.name == host else ("no" if missing else "yes")
        rows.append((target.name, runs, " ".join(missing)))
    screen.table(("target", "runs_here", "missing"), rows, f"Targets, on {cpu_name()}")
