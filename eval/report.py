"""What a report knows: its rows, where its figures come from, and what stands beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FLOAT_ROW, MIXED_ROW = "float32", "mixed precision"
CALIBRATED_ROW, TRAINED_ROW = "integers, calibrated", "integers, trained"
PYTORCH, INTERPRETED, COMPILED = "PyTorch", "PyTorch, interpreter", "TVM"
HEADLINES = ("mAP", "mIoU", "top1")
"""The metrics that plots show, as far as the data has them."""
TITLES = {
    "mAP": "mAP",
    "AP50": "AP50",
    "mIoU": "mIoU",
    "top1": "top-1",
    "top5": "top-5",
    "equal_classes": "equal classes",
    "equal_detections": "equal detections",
    "equal_pixels": "equal pixels",
    "sqnr_db": "logits, dB",
}
"""The metrics of a report in their order; all but the last are percentages."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one image on so many threads, over `runs` runs; fps is from the median."""

    threads: int
    median_ms: float
    least_ms: float
    p90_ms: float
    fps: float
    runs: int


@dataclass(frozen=True)
class Proofs:
    """What is known of an integer program for every image, and what was compared.

    facts: values and accumulators that provably stay in their types; accumulators: those of them;
    headroom_bits of the accumulator `tightest`. equal_images: on so many images all outputs were
    compared bit for bit between interpreter and library, at all numbers of `threads`. instructions:
    of the library, all disassembled; float_instructions: those that compute on floats.
    """

    facts: int
    accumulators: int
    tightest: str
    headroom_bits: int | None
    equal_images: int
    threads: tuple[int, ...]
    instructions: int | None = None
    float_instructions: int | None = None


@dataclass(frozen=True)
class Row:
    """One model on one runtime.

    metrics: `TITLES` as far as they are known; classes: by kind ("iou", "ap") the value of each
    class, None where it has none. Shares are percentages of the multiply-accumulates. dashes: why a
    column has no value, by its key.
    """

    model: str
    runs_on: str
    metrics: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    times: tuple[Timing, ...] = ()
    params: int | None = None
    macs: int | None = None
    integer_share: float | None = None
    eight_bit_share: float | None = None
    file_bytes: int | None = None
    memory_kb: int | None = None
    proofs: Proofs | None = None
    dashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model and runtime."""
        return f"{self.model} ({self.runs_on})"


@dataclass(frozen=True)
class Provenance:
    """Where figures come from: what every one of them carries.

    sha256 is of the names and bytes of all files that were scored, annotations included; images of
    `available` were scored. machine is that of `iqvit.eval.bench.machine`.
    """

    command: str
    data: str
    sha256: str
    images: int
    available: int
    calibration: str
    machine: Mapping[str, Any]

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that computed the figures."""
        known = {"iqvit": "iqvit", "torch": "torch", "apache_tvm": "tvm"}
        return {
            name: str(self.machine[f"version_{key}"])
            for key, name in known.items()
            if f"version_{key}" in self.machine
        }

    @property
    def scored(self) -> str:
        """How many images, and of which data."""
        some = f"{self.images}" if self.images == self.available else self._part()
        return f"{some} images of {self.data}, SHA-256 {self.sha256[:12]}"

    @property
    def lines(self) -> tuple[str, str, str]:
        """The command; data and its checksum; machine, date and versions."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        known = self.machine
        machine = f"{known['cpu']}, {known['cores']} cores, load {known['load']}"
        return self.command, self.scored, f"{machine}; {self.machine['date']}; {versions}"

    def _part(self) -> str:
        return f"{self.images} of {self.available}"


@dataclass(frozen=True)
class Panel:
    """A picture with its title and a line below it, as a JPEG file's bytes."""

    title: str
    jpeg: bytes
    caption: str = ""


@dataclass(frozen=True)
class Strip:
    """One image as it is and as models see it, side by side."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Report:
    """All of it.

    nodes: `vars` of `iqvit.compare.NodeError`, in the order of the program, on `compared` images.
    operators: milliseconds of one run by what a function computes, at `profiled` threads; between:
    those that lie between the functions. legend: the classes of class maps with their colours, RGB
    in 0..255. notes: what a reader must know.
    """

    model: str
    task: str
    rows: tuple[Row, ...]
    provenance: Provenance
    notes: tuple[str, ...]
    nodes: tuple[Mapping[str, Any], ...] = ()
    compared: int = 0
    operators: tuple[tuple[str, float], ...] = ()
    between: float = 0.0
    profiled: int = 1
    strips: tuple[Strip, ...] = ()
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    @property
    def metrics(self) -> list[str]:
        """The metrics that any row has, in their order."""
        return [key for key in TITLES if any(key in row.metrics for row in self.rows)]

    @property
    def headlines(self) -> list[str]:
        """The metrics that are plotted."""
        return [key for key in HEADLINES if key in self.metrics]

    @property
    def threads(self) -> list[int]:
        """The numbers of threads that anything was timed at."""
        return list(dict.fromkeys(time.threads for row in self.rows for time in row.times))


def worst_nodes(report: Report, count: int, skip: Sequence[str]) -> list[Mapping[str, Any]]:
    """The nodes of the lowest signal-to-noise ratio, without operators of the names `skip`."""
    computed = [node for node in report.nodes if node["op"] not in skip]
    return sorted(computed, key=lambda node: node["sqnr_db"])[:count]
