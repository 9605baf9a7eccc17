"""The `.iqv` file: an IntGraph as text, safetensors and JSON under one hash; never a pickle.

Layout, numbers little endian:

    8 bytes   magic
    4         format version
    4         length of the header
    8         length of the whole file
    32        SHA-256 of everything else, before and after
    header    JSON: lengths of the three parts
    parts     graph as text (UTF-8), constants (safetensors), scales and meta data (JSON)
"""

import hashlib
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from iqvit.errors import FileFormatError, GraphError
from iqvit.files import write_atomically
from iqvit.intgraph import IntGraph, qparams_json
from iqvit.inttype import QParams
from iqvit.text import parse_graph, print_graph

# As in PNG: a byte that is no ASCII and both line ends, which a transfer as text would change.
MAGIC = b"\x89IQV\r\n\x1a\n"
VERSION = 1
FIXED = struct.Struct("<8sIIQ")
HASH_BYTES = hashlib.sha256().digest_size
PREFIX = FIXED.size + HASH_BYTES
PARTS = ("text", "constants", "data")


def save(graph: IntGraph, path: str | Path) -> None:
    """Write the graph as an `.iqv` file, whole or not at all; equal graphs give equal bytes.

    Raises `IqvitError` for a destination that cannot be written, `GraphError` for meta data that is
    not plain JSON.
    """
    write_atomically(path, to_bytes(graph))


def load(path: str | Path) -> IntGraph:
    """Read an `.iqv` file and prove its graph anew.

    Raises `FileFormatError` for a file that cannot be read, is not an `.iqv`, has another version,
    is truncated, has trailing bytes or was altered; `GraphError` where the proof fails.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}") from error
    return from_bytes(data, str(path))


def to_bytes(graph: IntGraph) -> bytes:
    """The contents of the graph's `.iqv` file."""
    constants = {name: np.ascontiguousarray(value) for name, value in graph.constants.items()}
    # ascontiguousarray makes a vector of a scalar
    constants = {name: v.reshape(graph[name].type.shape) for name, v in constants.items()}
    parts = [
        print_graph(graph).encode(),
        safetensors.numpy.save(constants),
        _data(graph).encode(),
    ]
    lengths = dict(zip(PARTS, map(len, parts), strict=True))
    header = json.dumps(lengths).encode()
    rest = b"".join([header, *parts])
    fixed = FIXED.pack(MAGIC, VERSION, len(header), PREFIX + len(rest))
    return fixed + _digest(fixed, rest) + rest


def from_bytes(data: bytes, name: str) -> IntGraph:
    """The graph of an `.iqv` file's contents; `name` is for messages. Raises as `load`."""
    header_length = _check(data, name)
    rest = memoryview(data)[PREFIX:]
    try:
        lengths = json.loads(bytes(rest[:header_length]))
        text, constants, extra = _split(rest[header_length:], [lengths[part] for part in PARTS])
        stored = json.loads(extra)
        qparams = {node: QParams.of(**value) for node, value in stored["qparams"].items()}
        tensors = safetensors.numpy.load(constants)
        return parse_graph(text.decode(), tensors, qparams, stored["meta"])
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        # The hash was right, so this was written by something else than `save`.
        raise FileFormatError(f"{name} has the right hash, but is no graph: {error}") from error


def _check(data: bytes, name: str) -> int:
    """Check everything up to the hash; returns the length of the header."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FileFormatError(f"{name} is not an .iqv file")
    if len(data) < PREFIX:
        raise FileFormatError(f"{name} is truncated: {len(data)} bytes, not even a whole header")
    _, version, header_length, length = FIXED.unpack_from(data)
    if version != VERSION:
        raise FileFormatError(
            f"{name} is an .iqv of version {version}; this iqvit reads version {VERSION}"
        )
    if len(data) < length:
        raise FileFormatError(f"{name} is truncated: {len(data)} of {length} bytes")
    if len(data) > length:
        raise FileFormatError(f"{name} has {len(data) - length} trailing bytes after its end")
    if _digest(data[: FIXED.size], data[PREFIX:]) != data[FIXED.size : PREFIX]:
        raise FileFormatError(f"{name} was altered: its contents do not match its hash")
    return header_length


def _digest(fixed: bytes, rest: bytes) -> bytes:
    digest = hashlib.sha256(fixed)
    digest.update(rest)
    return digest.digest()


def _split(view: memoryview, lengths: list[int]) -> list[bytes]:
    """Consecutive parts of the view, which they fill."""
    if sum(lengths) != len(view):
        raise FileFormatError(f"parts of {sum(lengths)} bytes in a space of {len(view)}")
    ends = np.cumsum([0, *lengths]).tolist()
    return [bytes(view[a:b]) for a, b in pairwise(ends)]


def _data(graph: IntGraph) -> str:
    """Scales and meta data as JSON; float64 round-trips exactly through its shortest decimal."""
    qparams: dict[str, Any] = {
        node.name: qparams_json(node.qparams) for node in graph if node.qparams is not None
    }
    try:
        return json.dumps({"qparams": qparams, "meta": dict(graph.meta)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise GraphError(f"the meta data of the graph is not plain JSON: {error}") from error
