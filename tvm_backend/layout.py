"""Where the elements of a tensor lie after `reshape`, `permute` and `slice`: such operators move
nothing themselves where the kernel that reads or writes the tensor can follow the addresses."""

from dataclasses import dataclass

import numpy as np

from iqvit.intgraph import IntGraph, Node
from iqvit.ops.permute import Permute
from iqvit.ops.reshape import Reshape
from iqvit.ops.slice import Slice

LAYOUT = (Permute, Reshape, Slice)


@dataclass(frozen=True)
class View:
    """Element `i` of the tensor is element `offset + sum(i * strides)` of the flat value `root`."""

    root: str
    offset: int
    strides: tuple[int, ...]


def move(addresses: np.ndarray, node: Node) -> np.ndarray:
    """The addresses after one layout operator."""
    op = node.op
    if isinstance(op, Reshape):
        return addresses.reshape(op.shape)
    if isinstance(op, Permute):
        return addresses.transpose(op.dims)
    if isinstance(op, Slice):
        index = [slice(None)] * addresses.ndim
        index[op.axis] = slice(op.start, op.end, op.step)
        return addresses[tuple(index)]
    raise TypeError(f"{op.NAME} is no layout operator")


def view_of(graph: IntGraph, name: str) -> View:
    """The value `name` as a view of the farthest value behind it that layout operators lead to."""
    chain: list[Node] = []
    node = graph[name]
    while isinstance(node.op, LAYOUT):
        chain.append(node)
        node = graph[node.inputs[0]]
    # The farthest root may need more than strides (a reshape across a permute); try nearer ones.
    for start in range(len(chain), 0, -1):
        root = chain[start - 1].inputs[0]
        addresses = natural(graph[root].type.shape)
        for step in reversed(chain[:start]):
            addresses = move(addresses, step)
        strides = affine(addresses)
        if strides is not None:
            return View(root, int(addresses.flat[0]), strides)
    shape = graph[name].type.shape
    return View(name, 0, contiguous(shape))


def tail_strides(head: Node, tail: tuple[Node, ...]) -> tuple[int, ...] | None:
    """Strides with which the elements of `head` lie in the value of the last of `tail`.

    The tail permutes and reshapes what `head` computes; None where strides cannot express it.
    """
    shape = head.type.shape
    moved = natural(shape)
    for node in tail:
        moved = move(moved, node)
    addresses = np.empty(moved.size, np.int64)
    addresses[moved.ravel()] = np.arange(moved.size)
    return affine(addresses.reshape(shape))


def natural(shape: tuple[int, ...]) -> np.ndarray:
    """The address of every element of a contiguous tensor."""
    return np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


def affine(addresses: np.ndarray) -> tuple[int, ...] | None:
    """The strides with which the addresses grow along every axis, or None where they do not."""
    first = int(addresses.flat[0])
    expected = np.full((1,) * addresses.ndim, first, np.int64)
    strides: list[int] = []
    for axis, size in enumerate(addresses.shape):
        at = [0] * addresses.ndim
        at[axis] = min(1, size - 1)
        strides.append(int(addresses[tuple(at)]) - first)
        shape = [1] * addresses.ndim
        shape[axis] = size
        expected = expected + (np.arange(size) * strides[-1]).reshape(shape)
    return tuple(strides) if np.array_equal(expected, addresses) else None
