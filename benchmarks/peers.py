"""Other 8-bit toolchains on the same float model, images and cores as iqvit: accuracy and latency.

See README.md beside this file, and --help.
"""

import functools
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.commands.bench import open_for_timing
from iqvit.commands.eval import known_classes, reading
from iqvit.commands.options import Seed, Weights, thread_counts
from iqvit.commands.outputs import require_file
from iqvit.commands.quantize import calibration_images, names_hash, read_images
from iqvit.commands.screen import Report
from iqvit.commands.subject import Subject, float_subject, load_float, random_image
from iqvit.errors import DataError, IqvitError
from iqvit.eval.bench import bench, machine
from iqvit.eval.evaluate import evaluate, without
from iqvit.eval.imagenet import ImageSet, read_imagenet
from iqvit.files import write_atomically
from iqvit.models.float_model import FloatModel, logits_of

INPUT, OUTPUT, OPSET = "pixels", "logits", 17
LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
"""Their versions decide what is made, and are in the result."""
COLUMNS = ("peer", "top1", "agreement", "sqnr_db", "images", "calibration_images")

Call = Callable[[np.ndarray], np.ndarray]
"""float32 [1, 3, H, W], normalised -> float32 [1, classes]."""
Opener = Callable[[int], Call]
"""A number of threads -> the model, ready to run on so many."""


@dataclass(frozen=True)
class Workshop:
    """What peers are made from, and the folder in which each thing made is kept.

    images: uint8 [N, 3, H, W] of the calibration. few: how many of them the calibrators get that
    hold every activation of every image in memory.
    """

    model: FloatModel
    images: Tensor
    few: int
    folder: Path

    def make(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder `name` with what `build(folder)` writes, made once and whole or not at all."""
        done = self.folder / name
        if not done.is_dir():
            done.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=done.parent) as part:
                inside = Path(part) / name
                inside.mkdir()
                build(inside)
                inside.rename(done)
        return done

    def inputs(self, count: int | None = None) -> Iterator[np.ndarray]:
        """The first `count` calibration images as a peer takes them, one by one."""
        for image in self.images[:count]:
            yield self.model.normalise(image[None]).numpy()


# --- ONNX and ONNX Runtime ---


class Logits(nn.Module):
    """A classifier that returns its scores and nothing else."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        self.module, self.name = model.module, model.name

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.module(x), self.name)


def exported(shop: Workshop) -> Path:
    """The float model as ONNX, by the exporter that traces (the only one all peers read well)."""

    def build(folder: Path) -> None:
        torch.onnx.export(
            Logits(shop.model).eval(),
            (torch.from_numpy(next(shop.inputs(1))),),
            str(folder / "model.onnx"),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
        )

    return shop.make("onnx", build) / "model.onnx"


def prepared(shop: Workshop) -> Path:
    """The ONNX model with shapes inferred and constants folded, as ONNX Runtime's guide asks."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = exported(shop)

    def build(folder: Path) -> None:
        quant_pre_process(str(source), str(folder / "model.onnx"))

    return shop.make("onnx-prepared", build) / "model.onnx"


class Reader:
    """Calibration images in the form in which ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[np.ndarray]) -> None:
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def ort_static(shop: Workshop, method: str, count: int | None) -> Opener:
    """QDQ, uint8 activations, int8 weights per channel; all operators that it can quantise."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    source = prepared(shop)

    def build(folder: Path) -> None:
        quantize_static(
            str(source),
            str(folder / "model.onnx"),
            Reader(shop.inputs(count)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )

    return ort_opener(shop.make(f"onnx-{method}", build) / "model.onnx")


def ort_dynamic(shop: Workshop) -> Opener:
    """int8 weights per channel; activations quantised as they come. The convolution stays float:
    ONNX Runtime has no kernel for int8 weights there."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = prepared(shop)

    def build(folder: Path) -> None:
        quantize_dynamic(
            source,
            folder / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )

    return ort_opener(shop.make("onnx-dynamic", build) / "model.onnx")


def ort_opener(path: Path) -> Opener:
    """A session for each number of threads: it cannot be changed later."""
    import onnxruntime

    @functools.cache
    def open_with(threads: int) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run([OUTPUT], {INPUT: x})[0]

    return open_with


# --- OpenVINO and NNCF ---


def openvino_float(shop: Workshop) -> Opener:
    """The ONNX model, computed in float32 where the default would be bf16 if the CPU has it."""
    return openvino_opener(exported(shop), "f32")


def nncf_int8(shop: Workshop, transformer: bool, precision: str | None) -> Opener:
    """NNCF with its defaults, or for a transformer: SmoothQuant, and more left in float."""
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use over the network
    import nncf
    import openvino

    source = exported(shop)
    model_type = nncf.ModelType.TRANSFORMER if transformer else None

    def build(folder: Path) -> None:
        nncf.set_log_level(logging.ERROR)
        made = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(list(shop.inputs())),
            subset_size=len(shop.images),
            model_type=model_type,
        )
        openvino.save_model(made, folder / "model.xml", compress_to_fp16=False)

    name = "nncf-transformer" if transformer else "nncf"
    return openvino_opener(shop.make(name, build) / "model.xml", precision)


def openvino_opener(path: Path, precision: str | None) -> Opener:
    """A compiled model for each number of threads; `precision` of what is not int8, or its own."""
    import openvino

    @functools.cache
    def open_with(threads: int) -> Call:
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: request.infer([x])[0]

    return open_with


# --- the list ---


@dataclass(frozen=True)
class Peer:
    """note: how it was made. few: it is calibrated on `Workshop.few` images; None: on none."""

    build: Callable[[Workshop], Opener] | None
    note: str
    few: bool | None = None


QDQ = "static QDQ u8s8 per channel, {} calibration"
PEERS: dict[str, Peer] = {
    "pytorch-float32": Peer(None, "eager"),
    "onnxruntime-float32": Peer(lambda s: ort_opener(exported(s)), "default optimisations"),
    "onnxruntime-minmax": Peer(
        lambda s: ort_static(s, "MinMax", None), QDQ.format("min-max"), few=False
    ),
    "onnxruntime-entropy": Peer(
        lambda s: ort_static(s, "Entropy", s.few), QDQ.format("entropy"), few=True
    ),
    "onnxruntime-percentile": Peer(
        lambda s: ort_static(s, "Percentile", s.few), QDQ.format("percentile"), few=True
    ),
    "onnxruntime-dynamic": Peer(ort_dynamic, "MatMul and Gemm, weights s8 per channel"),
    "openvino-float32": Peer(openvino_float, "f32 hint"),
    "nncf-default": Peer(
        lambda s: nncf_int8(s, False, None), "OpenVINO, default preset and hint", few=False
    ),
    "nncf-transformer": Peer(
        lambda s: nncf_int8(s, True, None),
        "OpenVINO, ModelType.TRANSFORMER, default hint (bf16 beside int8 where the CPU has it)",
        few=False,
    ),
    "nncf-transformer-f32": Peer(
        lambda s: nncf_int8(s, True, "f32"), "OpenVINO, ModelType.TRANSFORMER, f32 hint", few=False
    ),
}


def open_peer(name: str, shop: Workshop) -> Subject:
    """A peer as the thing that `iqvit eval` and `iqvit bench` run."""
    model, build = shop.model, PEERS[name].build
    if build is None:
        return float_subject(model, name)
    opener = build(shop)
    current = [opener(1)]

    def set_threads(threads: int) -> None:
        current[0] = opener(threads)

    def scores(images: Tensor) -> Tensor:
        inputs = model.normalise(images).numpy()
        return torch.from_numpy(
            np.concatenate([np.array(current[0](inputs[i : i + 1])) for i in range(len(inputs))])
        )

    return Subject(
        name=name,
        kind="peer",
        input_shape=model.input_shape,
        labels=(),
        preprocessing=model.preprocessing,
        scores=scores,
        example=lambda: model.normalise(random_image(model.input_shape)).numpy(),
        call=lambda x: current[0](x),
        set_threads=set_threads,
        facts={},
    )


# --- measuring ---


@dataclass(frozen=True)
class Scoring:
    """The images that are scored, and the float model's scores of them, computed once."""

    images: ImageSet
    excluded: Sequence[Path]
    model: FloatModel
    reference: Callable[[Tensor], Tensor]
    threads: Sequence[int]
    limit: int | None
    skip: bool

    def __call__(self, subject: Subject, report: Report) -> dict[str, Any]:
        for count in reversed(self.threads):
            subject.set_threads(count)  # what cannot run is to fail here, not between the timings
            subject.call(subject.example())
        if self.skip:
            return {}
        subject.set_threads(1)
        preprocess = float_subject(self.model).preprocess
        return evaluate(
            subject.scores,
            self.images.items,
            preprocess,
            reference=self.reference,
            scale=subject.scale,
            zero_point=subject.zero_point,
            classes=known_classes(self.images),
            exclude=self.excluded,
            limit=self.limit,
            progress=reading(report),
        )


def remembered(scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`scores`, computed once for each batch of images."""
    known: dict[bytes, Tensor] = {}

    def recall(images: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in known:
            known[key] = scores(images)
        return known[key]

    return recall


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters and quantisers say off the results."""
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def score(
    row: dict[str, Any], make: Callable[[], Subject], scoring: Scoring, report: Report
) -> Subject | None:
    """Adds what a peer reaches to its row, or why it does not run; the latter gives None."""
    begun = time.perf_counter()
    try:
        with quiet():
            subject = make()
            row["make_seconds"] = time.perf_counter() - begun
            row |= scoring(subject, report)
    except IqvitError:
        raise
    except Exception as error:  # noqa: BLE001  (other people's code: that it fails is the result)
        lines = str(error).strip().splitlines() or [""]
        row["error"] = f"{type(error).__name__}: {lines[0]}"
        return None
    return subject


def add_times(
    rows: Sequence[dict[str, Any]],
    subjects: dict[str, Subject],
    threads: Sequence[int],
    runs: int,
    report: Report,
) -> None:
    """Adds `latency_ms@THREADS` and its like to the rows; all take turns."""
    found = bench(
        {name: subject.call for name, subject in subjects.items()},
        lambda name: subjects[name].example(),
        threads=threads,
        runs=runs,
        set_threads={name: subject.set_threads for name, subject in subjects.items()},
        progress=lambda done, total: report("timing", done, total),
    )
    by_name = {row["peer"]: row for row in rows}
    for timed in found:
        for key in ("latency_ms", "latency_p90_ms", "latency_min_ms"):
            by_name[timed["model"]][f"{key}@{timed['threads']}"] = timed[key]


# --- the command ---


def key_of(model: FloatModel, images: Tensor, few: int) -> str:
    """Names what is made: another model, other images or other versions are another folder."""
    digest = hashlib.sha256(f"{model.name} {few} {sorted(versions().items())}".encode())
    digest.update(images.numpy().tobytes())
    for name, tensor in model.module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the libraries that are compared."""
    found = {}
    for name in LIBRARIES:
        try:
            found[f"version_{name}"] = version(name)
        except PackageNotFoundError:
            found[f"version_{name}"] = "not installed"
    return found


def chosen(text: str | None) -> list[str]:
    """The peers of `--only`; IqvitError for one that is not known."""
    names = list(PEERS) if text is None else list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name and name not in PEERS]
    if unknown:
        raise IqvitError(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [name for name in names if name]


def peer_row(name: str, shop: Workshop) -> dict[str, Any]:
    """What is known of a peer before it is made."""
    peer = PEERS[name]
    counts = {None: 0, False: len(shop.images), True: min(shop.few, len(shop.images))}
    return {"peer": name, "note": peer.note, "calibration_images": counts[peer.few]}


def our_row(path: str, expected: str) -> dict[str, Any]:
    """The same of one of iqvit's; an .iqv tells whether the images left out calibrated it."""
    if Path(path).is_dir():
        return {"peer": path, "note": "iqvit library; which images calibrated it is not known"}
    if not Path(path).is_file():
        raise DataError(f"--ours {path}: there is no such .iqv or artifact folder")
    from iqvit.serialize import load

    meta = load(Path(path)).meta
    same = meta.get("images_hash") == expected
    note = "the same images" if same else "NOT known to be calibrated on the same images"
    row = {"peer": path, "note": f"iqvit library, {note}"}
    return row | ({"calibration_images": meta["images"]} if "images" in meta else {})


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """The result as JSON; null for an infinite number."""
    if path is None:
        return
    for row in result["rows"]:
        infinite = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        row |= dict.fromkeys(infinite)
    write_atomically(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def show(rows: Sequence[dict[str, Any]], threads: Sequence[int]) -> None:
    """One line a peer; numbers rounded."""
    columns = (*COLUMNS, *(f"latency_ms@{count}" for count in threads), "note")

    def cell(row: dict[str, Any], column: str) -> Any:
        value = row.get(column)
        if column == "note" and "error" in row:
            return f"FAILED: {row['error']}"
        return round(value, 2) if isinstance(value, float) else value

    screen.table(columns, [[cell(row, column) for column in columns] for row in rows])


def peers(
    data: Annotated[
        Path,
        typer.Option(
            help="A folder per class, or files whose names begin with the class index; the images "
            "that calibrate are taken from it and not scored."
        ),
    ],
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="The float model, as `iqvit quantize` names it.")
    ] = "timm:vit_tiny_patch16_224",
    weights: Weights = None,
    calib: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration images.")] = 128,
    few: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Of these, for ONNX Runtime's entropy and percentile calibrators: they hold all "
            "activations of all images in memory.",
        ),
    ] = 32,
    seed: Seed = 0,
    only: Annotated[
        str | None, typer.Option(metavar="NAME,...", help=f"Of: {', '.join(PEERS)}; '' for none.")
    ] = None,
    ours: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An .iqv or artifact; repeatable.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Score so many, evenly spaced.")
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,N", help="To measure at.")] = "1,2",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 50,
    no_time: Annotated[bool, typer.Option("--no-time", help="Accuracy only.")] = False,
    time_only: Annotated[bool, typer.Option("--time-only", help="Latency only.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what is made, and take it from here next time."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows.")] = None,
) -> None:
    """Makes other toolchains' 8-bit versions of a float model, scores and times them.

    Calibration images are chosen as `iqvit quantize --calib DATA --images N --seed S` chooses them
    and left out as `iqvit eval imagenet --exclude-calib N --seed S` does. top1 and agreement
    (equal predictions) are in percent; sqnr_db is of the scores against PyTorch float32;
    latency_ms is the median of one image, all models taking turns. A peer that is not installed
    or fails has the reason in its row.
    """
    require_file(json)
    counts = thread_counts(threads)
    names = chosen(only)
    torch.set_num_threads(1)
    model = load_float(spec, weights, seed=seed)
    excluded = calibration_images(data, calib, seed)
    found = read_imagenet(data)
    without(found.items, excluded)
    reference = remembered(model.scores)
    scoring = Scoring(found, excluded, model, reference, counts, images, time_only)
    with ExitStack() as stack, screen.progress() as report:
        calibrating, _ = read_images(excluded, model, False, report)
        kept = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shop = Workshop(model, calibrating, few, kept / key_of(model, calibrating, few))
        expected = names_hash(data, excluded)
        makers: list[tuple[dict[str, Any], Callable[[], Subject]]] = [
            (our_row(path, expected), functools.partial(opened, path, stack, report))
            for path in ours or ()
        ]
        makers += [(peer_row(n, shop), functools.partial(open_peer, n, shop)) for n in names]
        subjects = {}
        for row, make in makers:
            report(row["peer"], 0, 0)
            subject = score(row, make, scoring, report)
            subjects |= {} if subject is None else {row["peer"]: subject}
            screen.note(f"{row['peer']}: {row.get('error', 'done')}")
        rows = [row for row, _ in makers]
        if subjects and not no_time:
            add_times(rows, subjects, counts, runs, report)
    about = {"spec": spec, "seed": seed, "scored_threads": 1, **machine(), **versions()}
    write_json(json, {"machine": about, "rows": rows})
    show(rows, [] if no_time else counts)


def opened(path: str, stack: ExitStack, report: Report) -> Subject:
    """One of iqvit's; an .iqv is compiled for this CPU."""
    return open_for_timing(path, stack, report, (None, None, None))


if __name__ == "__main__":
    typer.run(guarded(peers))
