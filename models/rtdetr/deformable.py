"""Multi-scale deformable attention over three feature levels.

Source: Zhu et al., "Deformable DETR" (2021), equation 3, with the offsets in units of the box and
the discrete sampling of Lv et al., "RT-DETRv2" (2024), section 3.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.models.rtdetr.config import RTDetrConfig

OFFSET_SCALE = 0.5


class DeformableAttention(nn.Module):
    """Every query reads `points` samples of each level around its box.

    query: [N, Q, width], with its position added; boxes: [N, Q, 4], (cx, cy, w, h) as fractions of
    the image; memory: [N, tokens, width], level after level, row by row. Returns [N, Q, width].

    "default" reads bilinearly, with zeros outside. "discrete" reads the cell floor(x * W + 1/2),
    half a cell beyond the nearest one, as the published `dsp` weights were trained with, clamped to
    the level. (The authors' code clamps x by the height as well, which differs on images that are
    not square; transformers' and this one clamp each axis by its own size.)
    """

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        self.heads, self.points, self.levels = config.heads, config.points, config.levels
        self.discrete = config.sampling == "discrete"
        samples = self.heads * len(self.levels) * self.points
        self.sampling_offsets = nn.Linear(config.width, 2 * samples)
        self.attention_weights = nn.Linear(config.width, samples)
        self.value_proj = nn.Linear(config.width, config.width)
        self.output_proj = nn.Linear(config.width, config.width)
        self._initialise()

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor) -> Tensor:
        batch, queries, width = query.shape
        by_sample = (batch, queries, self.heads, len(self.levels) * self.points)
        values = self._by_head(self.value_proj(memory))
        weights = self.attention_weights(query).reshape(by_sample).softmax(-1)
        offsets = self.sampling_offsets(query).reshape(*by_sample, 2)
        boxes = boxes[:, :, None, None]
        places = boxes[..., :2] + offsets * (OFFSET_SCALE / self.points) * boxes[..., 2:]
        samples = self._sample(values, places.transpose(1, 2).flatten(0, 1))
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
        y = (samples * weights).sum(-1).reshape(batch, width, queries)
        return self.output_proj(y.transpose(1, 2))

    def _by_head(self, values: Tensor) -> Tensor:
        """[N, tokens, width] -> [N * heads, width / heads, tokens]."""
        batch, tokens, width = values.shape
        values = values.transpose(1, 2)
        return values.reshape(batch * self.heads, width // self.heads, tokens)

    def _sample(self, values: Tensor, places: Tensor) -> Tensor:
        """values by head and places [N * heads, Q, samples, 2] -> [N * heads, w, Q, samples]."""
        read = read_cell if self.discrete else read_bilinear
        by_level = values.split([height * width for height, width in self.levels], dim=-1)
        at_level = places.split(self.points, dim=2)
        parts = zip(by_level, at_level, self.levels, strict=True)
        return torch.cat([read(v, at, size) for v, at, size in parts], dim=-1)

    def _initialise(self) -> None:
        """Heads look in evenly spread directions, point i at i steps; the discrete offsets stay."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).repeat(len(self.levels))
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(
                (directions[:, None] * steps[None, :, None]).flatten(),
            )
        self.sampling_offsets.requires_grad_(not self.discrete)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def read_bilinear(values: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, c, H * W] at places [B, Q, P, 2] (x, y as fractions) -> [B, c, Q, P], zeros outside."""
    return functional.grid_sample(
        values.unflatten(2, size),
        2 * places - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )


def read_cell(values: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, c, H * W] at cell floor(x * W + 1/2) of places [B, Q, P, 2] -> [B, c, Q, P], clamped."""
    height, width = size
    # Truncation is the floor here: below zero both are clamped to the first cell.
    column = (places[..., 0] * width + 0.5).to(torch.int64).clamp(0, width - 1)
    row = (places[..., 1] * height + 0.5).to(torch.int64).clamp(0, height - 1)
    cell = (row * width + column).flatten(1).unsqueeze(1)
    found = values.gather(2, cell.expand(-1, values.shape[1], -1))
    return found.unflatten(2, places.shape[1:3])
