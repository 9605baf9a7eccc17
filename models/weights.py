"""Weight files: read without running code from them, unwrapped, and loaded strictly."""

import argparse
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iqvit.errors import ModelError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# Averaged weights come first: where a trainer saves both, they are the ones it scored.
WRAPPERS = (
    "ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
SHOWN = 10


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file, and what was unwrapped to reach them (sentences for the user)."""

    tensors: dict[str, Tensor]
    source: str
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """Tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file; ModelError naming the file.

    torch files are read with `weights_only=True`: a pickle that asks for anything but tensors and
    plain containers is refused. Usual wrappers (`{"model": ...}`, `{"ema": {"module": ...}}`) are
    opened, and each is said in `notes`.
    """
    if not path.is_file():
        raise ModelError(f"no weight file {path}")
    if path.suffix == ".safetensors":
        return Weights(_read_safetensors(path), str(path))
    if path.suffix not in TORCH_SUFFIXES:
        raise ModelError(
            f"{path}: weights are read from .safetensors, {', '.join(TORCH_SUFFIXES)}; "
            f"not from {path.suffix or 'a file without suffix'}"
        )
    return _unwrap(_read_torch(path), path)


def load_weights(module: nn.Module, weights: Weights) -> tuple[str, ...]:
    """Copies `weights` into `module`, every key and shape exactly; returns notes for the user.

    ModelError reports all missing, unexpected and wrongly shaped keys at once (the first ten of
    each), and weights that are NaN or infinite.
    """
    expected = module.state_dict()
    tensors, notes = _strip_prefixes(weights.tensors, expected)
    missing = _missing(expected, tensors)
    unexpected = sorted(tensors.keys() - expected.keys())
    wrong = _misfits(expected, tensors)
    problems = [
        _listing("missing", missing, expected),
        _listing("unexpected", unexpected, tensors),
        _count("wrong shape or type", wrong),
    ]
    if any(problems):
        raise ModelError(
            f"{weights.source} does not fit the model: {len(expected)} tensors expected, "
            f"{len(tensors)} found\n" + "\n".join(p for p in problems if p) + "\n"
            "  remedy  name the model that these weights were made for (its size, classes and "
            "input size)"
        )
    require_finite(tensors.items(), weights.source)
    module.load_state_dict(tensors, strict=False)
    half = {str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}
    if half:
        notes = (*notes, f"weights of {', '.join(sorted(half))} converted to float32")
    return (*weights.notes, *notes)


def fits(module: nn.Module, weights: Weights) -> bool:
    """Whether `load_weights` would accept names, shapes and types."""
    expected = module.state_dict()
    tensors, _ = _strip_prefixes(weights.tensors, expected)
    return not (
        _missing(expected, tensors)
        or tensors.keys() - expected.keys()
        or _misfits(expected, tensors)
    )


def require_finite(tensors: Iterable[tuple[str, Tensor]], source: str) -> None:
    """ModelError naming every tensor that holds NaN or an infinity."""
    bad = [k for k, t in tensors if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise ModelError(f"{source} holds NaN or infinite weights\n{_count('not finite', bad)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    # Research checkpoints keep their command line in a Namespace: plain data, safe to read.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{path} is damaged, or holds Python objects other than tensors, which are not "
                "loaded because they could run code; save its state_dict as .safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise ModelError(f"{path} is not a readable torch file: {reason}") from error


def _unwrap(content: Any, path: Path) -> Weights:
    opened: list[str] = []
    while isinstance(content, Mapping):
        inside = [k for k in WRAPPERS if isinstance(content.get(k), Mapping)]
        if not inside:
            break
        opened.append(inside[0])
        content = content[inside[0]]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if len(tensors) < len(content):
        others = [str(k) for k in content if k not in tensors]
        raise ModelError(
            f"{path} holds entries that are not tensors\n{_count('not tensors', others)}\n"
            f"  remedy  save the state_dict alone, or under one of: {', '.join(WRAPPERS)}"
        )
    note = f"weights taken from {''.join(f'[{k!r}]' for k in opened)} of {path.name}"
    return Weights(tensors, str(path), (note,) if opened else ())


def _strip_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    stripped, notes = dict(tensors), []
    # A name that the model has may begin so itself, even where not all of the model's do.
    while (prefix := _shared_prefix(stripped)) and not stripped.keys() & expected.keys():
        stripped = {k.removeprefix(prefix): v for k, v in stripped.items()}
        notes.append(f"prefix {prefix!r} removed from every weight name")
    return stripped, tuple(notes)


def _shared_prefix(names: Mapping[str, Tensor]) -> str | None:
    return next((p for p in PREFIXES if _all_begin(names, p)), None)


def _all_begin(names: Mapping[str, Tensor], prefix: str) -> bool:
    return len(names) > 0 and all(name.startswith(prefix) for name in names)


def _missing(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    # safetensors stores a tensor that two names share once; the other name is not missing.
    present = {_storage(t) for k, t in expected.items() if k in tensors}
    return [k for k, t in expected.items() if k not in tensors and _storage(t) not in present]


def _storage(tensor: Tensor) -> tuple[int, tuple[int, ...]] | int:
    return (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() > 0 else id(tensor)


def _misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    wrong = []
    for key, want in expected.items():
        got = tensors.get(key)
        if got is None:
            continue
        if got.shape != want.shape:
            wrong.append(f"{key}: {list(got.shape)} where the model has {list(want.shape)}")
        elif got.is_floating_point() != want.is_floating_point():
            wrong.append(f"{key}: {got.dtype} where the model has {want.dtype}")
    return wrong


def _listing(title: str, names: list[str], tensors: Mapping[str, Tensor]) -> str:
    return _count(title, [f"{name} {list(tensors[name].shape)}" for name in names])


def _count(title: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = [f"... and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    lines = [f"    {entry}" for entry in [*entries[:SHOWN], *more]]
    return "\n".join([f"  {title} ({len(entries)})", *lines])
