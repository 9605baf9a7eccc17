"""Learning curves as a picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from iqvit.files import write_atomically


def write_curves(path: Path, history: Sequence[Mapping[str, float]], metric: str) -> bool:
    """Loss, metric and learning rate by epoch as a PNG; False where matplotlib is missing.

    Raises IqvitError where the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, 3), ("loss", metric, "lr"), strict=True):
        rows = [row for row in history if key in row]
        axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], marker=".")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(key)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())
    return True
