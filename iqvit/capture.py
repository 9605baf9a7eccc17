"""Capture: a float `nn.Module` becomes an undecomposed ATen graph that knows where it came from.

Export without decomposition keeps `linear`, `layer_norm`, `gelu`, `softmax` and
`scaled_dot_product_attention` as single nodes; a decomposed softmax would be a dozen.
"""

import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from iqvit.capture_cleanup import drop_assertions, keep_outputs
from iqvit.errors import CaptureError, node_message

# What a model's own Python may raise while it is traced; torch's export errors are RuntimeErrors.
EXPORT_FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
DATA_DEPENDENT = (
    GuardOnDataDependentSymNode,
    DataDependentOutputException,
    DynamicOutputShapeException,
)
# Wrappers that only switch a mode which inference has off; the index of their subgraph argument.
MODE_WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
UNKNOWN_OUTPUT = re.compile(r"Found <class '([^']+)'> in output")
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Source:
    """Where a node comes from: `blocks.3.mlp.act`, `timm/layers/mlp.py`, 44; unknown: "" and 0."""

    module_path: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        if not self.module_path:
            return place
        return f"{self.module_path} ({place})" if place else self.module_path


@dataclass(frozen=True)
class CapturedModel:
    """An exported float model.

    `module(x)` takes the normalised float32 image of `input_shape` (1, C, H, W) and returns a
    tuple in the order of `output_names`. Parameters and buffers are `get_attr` nodes of buffers
    (copies: training the model later changes nothing here). Every node has `meta["source"]`
    and, where it is a tensor, `meta["val"]`, a tensor on the meta device of its shape and dtype.
    `mean` and `std` per channel belong to the preprocessing, in units of pixel/255.
    """

    module: fx.GraphModule
    input_shape: tuple[int, int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output_names: tuple[str, ...]
    sources: dict[str, Source]


def capture(
    model: nn.Module,
    input_shape: tuple[int, int, int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    outputs: Sequence[str] | None = None,
) -> CapturedModel:
    """Export `model` for one image of `input_shape` (1, C, H, W), in eval mode.

    outputs: the names of those that are wanted, of a model that returns a dict or data class
    (None: all of them). The model is left as it was. Raises CaptureError for an impossible request,
    for a model that does not export (data-dependent control flow above all) and for data-dependent
    shapes.
    """
    _check_request(model, input_shape, mean, std)
    with _inference_mode(model):
        program = _export(model, input_shape)
    names = _output_names(program)
    module = _lift(program)
    names = keep_outputs(module.graph, names, outputs)
    drop_assertions(module.graph)
    _check_static(module.graph)
    sources = {node.name: node.meta["source"] for node in module.graph.nodes}
    return CapturedModel(module, input_shape, tuple(mean), tuple(std), names, sources)


def _check_request(
    model: nn.Module, shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        raise CaptureError(f"input shape {tuple(shape)}: give (1, channels, height, width)")
    if len(mean) != shape[1] or len(std) != shape[1]:
        raise CaptureError(
            f"mean has {len(mean)} values and std {len(std)}: give one for each of the "
            f"{shape[1]} channels of the input"
        )
    if min(std) <= 0:
        raise CaptureError(f"std {tuple(std)}: every value must be greater than 0")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise CaptureError(f"{name} is on device {tensor.device}: call model.cpu() first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CaptureError(f"{name} is {tensor.dtype}: call model.float() first")


@contextmanager
def _inference_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and no fused native attention, which would be one opaque node."""
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training


def _export(model: nn.Module, shape: tuple[int, int, int, int]) -> ExportedProgram:
    image = torch.zeros(shape)
    try:
        # A run before the export fills the caches that a model keeps for itself (levit's biases):
        # filled during the export, they would be left with tensors that have no values.
        model(image)
        with _silence():
            return torch.export.export(model, (image,), strict=False)
    except EXPORT_FAILURES as error:
        raise _export_failure(model, shape, error) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep export from logging and printing its graphs when it fails; the error says it all."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(level)


def _export_failure(
    model: nn.Module, shape: tuple[int, int, int, int], error: Exception
) -> CaptureError:
    """One message for whatever went wrong, at the user's line rather than torch's."""
    name = type(model).__name__
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    what = f"{name} cannot be exported for an image of shape {tuple(shape)}: {reason.strip()}"
    remedy = "make forward(image) run on one float image with tensors or a dict of them as output"
    unknown_type = UNKNOWN_OUTPUT.search(str(error))
    if isinstance(error, DATA_DEPENDENT) or "data-dependent" in str(error):
        what = f"{name} has data-dependent control flow: Python reads the value of a tensor"
        remedy = "let no Python if, loop or shape depend on a tensor's value; use torch.where"
    elif unknown_type is not None:
        what = f"{name} returns a {unknown_type[1]}, whose fields torch.export does not know"
        remedy = "return a tensor, a tuple or a dict, or call torch.export.register_dataclass on it"
    frames = [(frame.filename, frame.lineno or 0) for frame in _user_frames(error)]
    file, line = frames[-1] if frames else ("", 0)
    source = str(Source("", _shorten(file), line))
    return CaptureError(node_message(what, "forward", source, remedy))


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if _is_user_file(frame.filename)]


def _is_user_file(file: str) -> bool:
    """Whether a frame is the model's own code: neither torch, nor Python, nor this file."""
    short = _shorten(file)
    inside = ("torch/", "python/", "<", "iqvit/capture.py")
    return bool(short) and not short.startswith(inside) and Path(file) != Path(__file__)


def _shorten(file: str) -> str:
    """A path relative to site-packages or the working folder, else its last part alone."""
    if not file or file.startswith("<"):
        return file
    path = Path(file)
    packages = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    for root in [*map(Path, packages), Path.cwd()]:
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    standard = Path(sysconfig.get_path("stdlib"))
    return f"python/{path.name}" if path.is_relative_to(standard) else path.name


def _source(node: fx.Node) -> Source:
    """Module path from the module stack; the innermost frame that is the model's own code."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [(file, int(line)) for file, line in frames if _is_user_file(file)]
    file, line = frames[-1] if frames else ("", 0)
    return Source(path, _shorten(file), line)


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """`logits` for a tensor (`classes` for one of indices), field names for a dict or data class,
    `output_0`... for a tuple.
    """
    paths = list(_leaf_paths(program.call_spec.out_spec, ()))
    specs = program.graph_signature.output_specs
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in specs):
        raise CaptureError("the model changes its own buffers: inference must leave them alone")
    names = []
    for path, spec in zip(paths, specs, strict=True):
        value = getattr(spec.arg, "value", spec.arg)
        if value is None:
            continue
        if type(spec.arg).__name__ != "TensorArgument":
            raise CaptureError(f"output {'.'.join(path)} is {value!r}: outputs must be tensors")
        name = "_".join(path) if path else _only_name(program)
        names.append(f"output_{name}" if name[0].isdigit() else name)
    if not names:
        raise CaptureError("the model returns no tensor: return the logits")
    return tuple(names)


def _only_name(program: ExportedProgram) -> str:
    outputs: Any = program.graph.output_node().args[0]
    (tensor,) = outputs
    return "logits" if tensor.meta["val"].is_floating_point() else "classes"


def _leaf_paths(spec: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf():
        yield path
        return
    children = spec.children()
    for key, child in zip(_child_keys(spec, len(children)), children, strict=True):
        yield from _leaf_paths(child, (*path, key))


def _child_keys(spec: Any, count: int) -> list[str]:
    """Field names as pytree contexts keep them: a list of keys, two such lists, or a type."""
    context = spec.context
    if hasattr(context, "_fields"):
        context = list(context._fields)
    if isinstance(context, list) and context and isinstance(context[0], (list, tuple)):
        context = list(context[0])
    if isinstance(context, list) and len(context) == count:
        return [str(key) for key in context]
    return [str(index) for index in range(count)]


def _lift(program: ExportedProgram) -> fx.GraphModule:
    """Copy the graph with `get_attr` nodes in place of the parameters that export made inputs."""
    root = nn.Module()
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            values[node] = graph.placeholder(node.name)
            _copy_meta(node, values[node])
            continue
        path = str(spec.target)
        tensor = program.state_dict.get(path, program.constants.get(path))
        values[node] = _add_buffer(root, graph, path, tensor)
    outputs = _copy_nodes(program.graph_module, root, graph, values)
    graph.output(tuple(value for value in outputs if isinstance(value, fx.Node)))
    graph.output_node().meta["source"] = Source("")
    graph.lint()
    return fx.GraphModule(root, graph)


def _add_buffer(root: nn.Module, graph: fx.Graph, path: str, tensor: Any) -> fx.Node:
    if not isinstance(tensor, torch.Tensor):
        raise CaptureError(f"{path} is a {type(tensor).__name__}: only tensors can be captured")
    base = re.sub(r"\W", "_", path)
    name, count = base, 0
    while hasattr(root, name):
        count += 1
        name = f"{base}_{count}"
    root.register_buffer(name, tensor.detach().clone())
    node = graph.create_node("get_attr", name, name=name)
    node.meta = {"source": Source(path), "val": torch.empty_like(tensor, device="meta")}
    return node


def _copy_nodes(
    owner: fx.GraphModule, root: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]
) -> tuple[Any, ...]:
    """Copy `owner`'s nodes into `graph`, inlining mode wrappers; returns the copied outputs."""
    for node in owner.graph.nodes:
        if node.op == "output":
            return map_arg(node.args[0], values.__getitem__)
        if node.op == "get_attr":
            value = getattr(owner, node.target)
            inner = isinstance(value, fx.GraphModule)
            values[node] = value if inner else _add_buffer(root, graph, node.target, value)
        elif getattr(node.target, "__name__", "") in MODE_WRAPPERS:
            values[node] = _inline(node, root, graph, values)
        elif node.target is getitem and isinstance(values[node.args[0]], tuple):
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "call_function":
            values[node] = graph.node_copy(node, values.__getitem__)
            _copy_meta(node, values[node])
    return ()


def _inline(
    node: fx.Node, root: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]
) -> tuple[Any, ...]:
    """Copy the subgraph of a mode wrapper; its value is the tuple of the subgraph's outputs."""
    wrapper = getattr(node.target, "__name__", "")
    arguments: list[Any] = list(node.args)
    position = MODE_WRAPPERS[wrapper]
    inner = values[arguments[position]]
    if wrapper == "wrap_with_autocast" and arguments[2]:
        first = next(n for n in inner.graph.nodes if n.op == "call_function")
        what = "the model computes under autocast in reduced precision"
        remedy = "remove torch.autocast from the model, or disable it (enabled=False)"
        raise CaptureError(node_message(what, first.name, str(_source(first)), remedy))
    formal = [n for n in inner.graph.nodes if n.op == "placeholder"]
    actual = [values[argument] for argument in arguments[position + 1 :]]
    return _copy_nodes(inner, root, graph, dict(zip(formal, actual, strict=True)))


def _copy_meta(old: fx.Node, new: fx.Node) -> None:
    """Keep only the source and the type: a traced stack holds absolute paths."""
    new.meta = {"source": _source(old)}
    if "val" in old.meta:
        new.meta["val"] = pytree.tree_map(_meta_tensor, old.meta["val"])


def _meta_tensor(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if not all(isinstance(size, int) for size in value.shape):
        # Its symbol instead, which _check_static then reports.
        return next(size for size in value.shape if not isinstance(size, int))
    return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")


def _check_static(graph: fx.Graph) -> None:
    for node in graph.nodes:
        leaves = pytree.tree_leaves(node.meta.get("val"))
        if all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves):
            continue
        what = f"{node.target} gives a shape or a number that depends on the image"
        remedy = "keep every shape and Python number independent of tensor values"
        raise CaptureError(node_message(what, node.name, str(node.meta["source"]), remedy))
