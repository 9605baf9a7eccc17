"""The runtimes of other toolchains: how a model file is opened, and what it executes of it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executed import Step, onnxruntime_steps, openvino_steps

from iqvit.tvm_backend.threads import prepare_threads, set_threads

INPUT = "pixels"

Call = Callable[[np.ndarray], Sequence[np.ndarray]]
"""float32 [1, 3, H, W], normalised -> the outputs of the model, in its order."""
Opener = Callable[[int], Call]
"""A number of threads -> the model, ready to run on so many."""


@dataclass(frozen=True)
class Runtime:
    """open: of a model file. steps: what it executes of one for such an input (None: it does not
    say). facts: what it decides on this machine."""

    open: Callable[[Path], Opener]
    steps: Callable[[Path, np.ndarray], list[Step]] | None = None
    facts: Callable[[], dict[str, Any]] = dict


def ort_session(path: Path, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ort_opener(path: Path) -> Opener:
    """A session for each number of threads: a session's cannot be changed."""

    @functools.cache
    def open_with(threads: int) -> Call:
        session = ort_session(path, threads)
        return lambda x: session.run(None, {INPUT: x})

    return open_with


def openvino_settings(precision: str | None, threads: int) -> dict[str, Any]:
    """For latency; floats in `precision` (None: its choice)."""
    hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    return {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **hint}


def openvino_opener(precision: str | None, path: Path) -> Opener:
    """A compiled model for each number of threads."""
    import openvino

    @functools.cache
    def open_with(threads: int) -> Call:
        settings = openvino_settings(precision, threads)
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: request.infer([x]).to_tuple()

    return open_with


def openvino_precision(precision: str | None) -> dict[str, Any]:
    """What floats are computed in: bfloat16 by its choice where the CPU multiplies that."""
    import openvino

    kept = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return {"float_precision": precision or kept.get_type_name()}


def openvino(precision: str | None) -> Runtime:
    """OpenVINO with floats in `precision` (None: its choice)."""
    return Runtime(
        functools.partial(openvino_opener, precision),
        lambda path, _x: openvino_steps(path, openvino_settings(precision, 1)),
        functools.partial(openvino_precision, precision),
    )


def executorch_opener(path: Path) -> Opener:
    """A program holds the pool of threads that it was loaded with, and the process has one pool: a
    program is let go before there is another pool, and loaded anew."""
    from executorch.extension.pybindings import portable_lib

    loaded: dict[int, Any] = {}

    def open_with(threads: int) -> Call:
        if threads not in loaded:
            loaded.clear()
            portable_lib._unsafe_reset_threadpool(threads)
            loaded[threads] = portable_lib._load_for_executorch(str(path))
        return lambda x: [out.numpy() for out in loaded[threads].forward([torch.from_numpy(x)])]

    return open_with


def tvm_opener(path: Path) -> Opener:
    """A library of Relax, which runs on as many threads of TVM's pool as are set last."""
    import tvm
    from tvm import relax

    prepare_threads()
    main = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]

    def call(x: np.ndarray) -> Sequence[np.ndarray]:
        found = main(tvm.runtime.tensor(x))
        return [out.numpy() for out in (found if isinstance(found, Sequence) else [found])]

    def open_with(threads: int) -> Call:
        set_threads(threads)
        return call

    return open_with


ONNX_RUNTIME = Runtime(ort_opener, lambda path, x: onnxruntime_steps(path, {INPUT: x}))
OPENVINO_F32 = openvino("f32")
OPENVINO = openvino(None)
EXECUTORCH = Runtime(executorch_opener)
TVM = Runtime(tvm_opener)
