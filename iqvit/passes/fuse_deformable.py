"""y = sum(mul(cat([grid_sampler(v_l, g_l, 0, 0, False), ...]), softmax(z)), [-1])
->  y = deformable_attention(v, boxes, offsets, z, shapes, points, factors, "bilinear")"""

from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from iqvit.canonical import aten, constant, shape
from iqvit.passes.editing import calls, insert, is_call, operands, substitute
from iqvit.sampling import deformable_attention

LAYOUT = (
    aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.permute,
    aten.transpose, aten.unsqueeze, aten.squeeze, aten.expand, aten.contiguous, aten.clone,
)  # fmt: skip
INSIDE = (
    *LAYOUT,
    aten.split, aten.split_with_sizes, aten.chunk, aten.slice, aten.select, aten.unbind,
    aten.cat, aten.concat, aten.stack, aten.repeat, aten.softmax, aten.sum,
    aten.mul, aten.add, aten.sub, aten.div, aten.clamp, aten.to, aten._to_copy,
    aten.grid_sampler, aten.index, aten.gather,
)  # fmt: skip
SAMPLERS = (aten.grid_sampler, aten.index, aten.gather)
GRID_MODES = {0: "bilinear", 1: "nearest"}
TOLERANCE = 1e-9  # of float64 values near 1


def fuse_deformable(module: fx.GraphModule) -> None:
    """Recognise multi-scale deformable attention, however its layout is written.

    What lies between the weighted sum and the four values that it is made of (values, boxes,
    offsets, logits) is found by its structure; the levels, points and factors are read off it; and
    it is replaced only if both compute the same in float64 on random values.
    """
    for node in calls(module, aten.sum):
        region = _Region.of(node)
        if region is not None:
            region.fuse()


class _Region:
    """The calls between the result `last` and the four values."""

    def __init__(self, nodes: list[fx.Node], leaves: list[fx.Node], last: fx.Node) -> None:
        self.nodes, self.leaves, self.last = nodes, leaves, last

    @staticmethod
    def of(node: fx.Node) -> "_Region | None":
        """The region that ends in a sum and what puts its axes in order, or None."""
        last = node
        while len(last.users) == 1 and is_call(next(iter(last.users)), *LAYOUT):
            last = next(iter(last.users))
        found: set[fx.Node] = set()
        leaves: list[fx.Node] = []
        pending = [last]
        while pending:
            current = pending.pop()
            if current in found or current in leaves or current.op == "get_attr":
                continue
            if is_call(current, *INSIDE) or _is_piece(current):
                found.add(current)
                pending += current.all_input_nodes
            else:
                leaves.append(current)
        region = _Region([n for n in node.graph.nodes if n in found], leaves, last)
        return region if len(leaves) == 4 and region.samplers else None

    @property
    def samplers(self) -> list[fx.Node]:
        """The calls that read the levels, in order."""
        return [n for n in self.nodes if is_call(n, *SAMPLERS)]

    def fuse(self) -> None:
        """Replace the region by one call, if it is what it looks like."""
        roles = self._roles()
        if roles is None:
            return
        value, boxes, offsets, logits, samples = roles
        points = [shape(s)[-1] for s in self._weighed()]
        mode = self._mode()
        factors = self._factors(boxes, offsets, samples)
        if mode is None or sum(points) != samples or factors is None:
            return
        for shapes in self._shapes(mode):
            rest = (shapes, points, factors, mode)
            if self._computes((value, boxes, offsets, logits), rest):
                args = (value, boxes, offsets, logits, *rest)
                new = insert(self.last, deformable_attention, *args)
                new.meta["source"] = self.samplers[0].meta["source"]
                substitute(self.last, new)
                return

    def _roles(self) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node, int] | None:
        """Values, boxes, offsets, logits and the samples of a head, by who reads what."""
        softmaxes = [n for n in self.nodes if is_call(n, aten.softmax)]
        if len(softmaxes) != 1:
            return None
        logits = self._only_leaf(softmaxes[0])
        value = self._only_leaf(operands(self.samplers[0])[0])
        rest = [leaf for leaf in self.leaves if leaf not in (value, logits)]
        boxes = [leaf for leaf in rest if shape(leaf)[-1] == 4 and len(shape(leaf)) == 3]
        if logits is None or value is None or len(rest) != 2 or not boxes:
            return None
        (offsets,) = [leaf for leaf in rest if leaf is not boxes[0]]
        fits = 2 * prod(shape(logits)) == prod(shape(offsets)) and shape(logits)[0] == 1
        ranks = [len(shape(leaf)) for leaf in (value, offsets, logits)]
        if not fits or ranks != [3, 3, 3]:
            return None
        return value, boxes[0], offsets, logits, shape(softmaxes[0])[-1]

    def _only_leaf(self, node: fx.Node) -> fx.Node | None:
        leaves = [leaf for leaf in self.leaves if leaf in _ancestors(node, self.leaves)]
        return leaves[0] if len(leaves) == 1 else None

    def _weighed(self) -> list[fx.Node]:
        """What is joined of all levels, one piece each, samples last."""
        joined = [n for n in self.nodes if is_call(n, aten.cat, aten.concat, aten.stack)]
        for node in joined:
            if all(any(s in _ancestors(p, []) for s in self.samplers) for p in operands(node)[0]):
                return list(operands(node)[0])
        return [self.samplers[0]] if len(self.samplers) == 1 else []

    def _mode(self) -> str | None:
        grids = [n for n in self.samplers if is_call(n, aten.grid_sampler)]
        if not grids:
            return "discrete"
        modes = {tuple(operands(n)[2:]) for n in grids}
        (kind, padding, aligned) = modes.pop()
        plain = not modes and len(grids) == len(self.samplers) and padding == 0 and not aligned
        return GRID_MODES.get(kind) if plain else None

    def _shapes(self, mode: str) -> list[list[int]]:
        """Candidates for the heights and widths: where the levels are read flat, their sides are
        bounds that something is clamped to."""
        sides = {
            int(bound) + 1
            for n in self.nodes
            if is_call(n, aten.clamp)
            for bound in operands(n)[1:]
            if isinstance(bound, (int, float)) and bound >= 0
        }
        options = []
        for node in self.samplers:
            size = shape(operands(node)[0])
            if len(size) == 4:
                options.append([size[2:]])
            else:
                options.append([(h, w) for h in sides for w in sides if h * w == size[-1]])
        return [[side for level in choice for side in level] for choice in product(*options)][:64]

    def _factors(self, boxes: fx.Node, offsets: fx.Node, samples: int) -> list[float] | None:
        """The place of every sample of a unit offset from the corner, for a box of size 1."""
        both = {boxes, offsets}
        places = [
            n
            for n in self.nodes
            if is_call(n, aten.add)
            and both <= _ancestors(n, self.leaves)
            and prod(shape(n)) == prod(shape(offsets))
        ]
        if not places:
            return None
        unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(shape(boxes))
        values = {leaf: _random(shape(leaf)) for leaf in self.leaves}
        values |= {boxes: unit, offsets: torch.ones(shape(offsets), dtype=torch.float64)}
        found = self._run(values)[places[0]].reshape(-1, samples, 2)
        factors = found[0, :, 0]
        same = torch.allclose(found, factors[None, :, None].expand_as(found), atol=TOLERANCE)
        return [float(f) for f in factors.float()] if same else None

    def _computes(self, leaves: tuple[fx.Node, ...], rest: tuple[Any, ...]) -> bool:
        """Whether the region and its replacement agree on random values, boxes inside and out."""
        value, boxes, offsets, logits = (_random(shape(leaf)) for leaf in leaves)
        inputs = (value, boxes.abs() % 1.0, 3 * offsets, logits)
        wanted = self._run(dict(zip(leaves, inputs, strict=True)))[self.last]
        found = deformable_attention(*inputs, *rest)
        return found.shape == wanted.shape and torch.allclose(found, wanted, atol=TOLERANCE)

    def _run(self, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Any]:
        """The region in float64."""
        env: dict[fx.Node, Any] = dict(values)

        def read(node: fx.Node) -> Any:
            return env[node] if node in env else _double(constant(node))

        for node in self.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), read)
            if is_call(node, aten.to, aten._to_copy) and node.meta["val"].is_floating_point():
                env[node] = args[0]
            else:
                env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return env


def _is_piece(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _ancestors(node: fx.Node, ends: list[fx.Node]) -> set[fx.Node]:
    """A node and all that it is computed from, up to `ends`."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending += [] if current in ends else current.all_input_nodes
    return found


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _random(size: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(len(size) + prod(size))
    return torch.randn(size, dtype=torch.float64, generator=generator)
