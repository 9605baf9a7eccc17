"""Real functions of sampling: what `grid_sample` and `deformable_attention` compute in float."""

import torch
from torch import Tensor
from torch.nn import functional

MODES = ("bilinear", "nearest", "discrete")


def grid_sample(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    """x [1,C,H,W] at grid [1,I,J,2], (x, y) in -1..1 from edge to edge -> [1,C,I,J].

    torch's `grid_sample` with `padding_mode="zeros"`, `align_corners=False`; mode is "bilinear" or
    "nearest", of whose ties the next cell wins (torch: the even one).
    """
    if mode == "bilinear":
        return functional.grid_sample(x, grid, mode, "zeros", align_corners=False)
    height, width = x.shape[-2:]
    found, inside = _cells((grid + 1) / 2, height, width, clamped=False)
    return x.flatten(2)[:, :, found[0]] * inside


def deformable_attention(
    value: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    logits: Tensor,
    shapes: list[int],
    points: list[int],
    factors: list[float],
    mode: str,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159, equation 3).

    value [1,T,heads*D], the levels one after another, each row by row; boxes [1,Q,4] as (cx, cy, w,
    h) in 0..1 of the image; offsets [1,Q,heads*K*2] and logits [1,Q,heads*K] of K samples a head;
    shapes (h, w, h, w, ...) and points of every level, K together. Sample k of a head lies at
    `(cx, cy) + offset * factors[k] * (w, h)` and weighs softmax(logits)[k]. Returns [1,Q,heads*D].

    mode: "bilinear" and "nearest" as in `grid_sample`; "discrete" reads the cell
    `floor(place * size + 1/2)`, clamped to the level (RT-DETRv2, arXiv 2407.17140, section 3).
    """
    queries, samples = boxes.shape[1], sum(points)
    heads = logits.shape[-1] // samples
    values = value.reshape(value.shape[1], heads, -1).permute(1, 2, 0)
    scale = boxes.new_tensor(factors).reshape(1, 1, samples, 1)
    moved = offsets.reshape(queries, heads, samples, 2).transpose(0, 1) * scale
    places = boxes[0, None, :, None, :2] + moved * boxes[0, None, :, None, 2:]
    weights = logits.reshape(queries, heads, samples).transpose(0, 1).softmax(-1)
    levels = list(zip(shapes[::2], shapes[1::2], strict=True))
    by_level = values.split([h * w for h, w in levels], -1)
    parts = [
        _sample(v.unflatten(-1, size), p, mode)
        for v, p, size in zip(by_level, places.split(points, 2), levels, strict=True)
    ]
    result = (torch.cat(parts, -1) * weights[:, None]).sum(-1)
    return result.permute(2, 0, 1).reshape(1, queries, -1)


def _sample(values: Tensor, places: Tensor, mode: str) -> Tensor:
    """values [B,D,H,W] at places [B,Q,P,2] -> [B,D,Q,P]."""
    if mode == "bilinear":
        return functional.grid_sample(values, 2 * places - 1, mode, "zeros", align_corners=False)
    height, width = values.shape[-2:]
    found, inside = _cells(places, height, width, mode == "discrete")
    index = found.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    read = values.flatten(2).gather(2, index)
    return read.unflatten(2, found.shape[1:]) * inside[:, None]


def _cells(places: Tensor, height: int, width: int, clamped: bool) -> tuple[Tensor, Tensor]:
    """Cells of places, and which of them are inside; clamped ones are, half a cell further."""
    shift = 0.5 if clamped else 0.0
    x = torch.floor(places[..., 0] * width + shift).to(torch.int64)
    y = torch.floor(places[..., 1] * height + shift).to(torch.int64)
    column, row = x.clamp(0, width - 1), y.clamp(0, height - 1)
    inside = torch.ones_like(x, dtype=torch.bool) if clamped else (column == x) & (row == y)
    return row * width + column, inside.to(places.dtype)
