"""The decoder of RT-DETRv2: query selection, then layers that refine one box for each query.

Boxes stay logits throughout: refinement adds to them, and no inverse sigmoid is needed.
"""

import math

import torch
from torch import Tensor, nn

from iqvit.models.rtdetr.config import RTDetrConfig
from iqvit.models.rtdetr.deformable import DeformableAttention
from iqvit.models.rtdetr.layers import ConvNorm, FeedForward, Perceptron, SelfAttention

LIMIT = math.log(1e5)
"""Bound of a box logit before it is refined: that of an inverse sigmoid clamped at 1e-5."""

ANCHOR_SIDE = 0.05
ANCHOR_MARGIN = 0.01
NO_ANCHOR = 16.0
"""Logit of an anchor too near the border: its sigmoid is 1, and it is a finite 16-bit number."""

PRIOR = 0.01
"""Probability of a class that the score heads start with."""


class DecoderLayer(nn.Module):
    """Post-norm: self-attention of the queries, deformable attention to memory, feed-forward."""

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.cross_attn = DeformableAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.decoder_ffn, nn.ReLU())
        self.norm3 = nn.LayerNorm(config.width)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, mask: Tensor | None
    ) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, mask))
        x = self.norm2(x + self.cross_attn(x + position, boxes, memory))
        return self.norm3(x + self.ffn(x))


class EncoderOutput(nn.Module):
    """Linear layer and LayerNorm before the heads that select the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Decoder(nn.Module):
    """Three maps [N, width, H/s, W/s] -> box logits [N, Q, 4] and class logits [N, Q, classes].

    A box is (cx, cy, w, h) as fractions of the image, before the sigmoid. Where a logit leaves
    [-LIMIT, LIMIT] before a refinement it is clamped, which equals the published
    `inverse_sigmoid(sigmoid(u))`, clamped at 1e-5, to within 1.1e-5.
    """

    anchors: Tensor
    valid: Tensor

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        width, layers = config.width, config.decoder_layers
        self.queries = config.queries
        self.input_proj = nn.ModuleList(ConvNorm(width, width, 1) for _ in config.levels)
        # Rows are the classes, and one of zeros for the padding of the denoising queries.
        self.denoising_class_embed = nn.Embedding(config.classes + 1, width, config.classes)
        self.enc_output = EncoderOutput(width)
        self.enc_score_head = _score_head(config)
        self.enc_bbox_head = _box_head(config)
        self.query_pos_head = Perceptron(4, 2 * width, width)
        for layer in self.query_pos_head.layers:
            nn.init.xavier_uniform_(layer.get_parameter("weight"))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.dec_score_head = nn.ModuleList(_score_head(config) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(_box_head(config) for _ in range(layers))
        anchors, valid = make_anchors(config.levels)
        self.all_valid = bool(valid.all())
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("valid", valid, persistent=False)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        memory = self.flatten(features)
        x, boxes, _ = self.select(memory)
        for place in range(len(self.layers)):
            x, boxes = self.refine(place, x, boxes, memory)
        return boxes, self.dec_score_head[-1](x)

    def flatten(self, features: list[Tensor]) -> Tensor:
        """Memory [N, tokens, width]: the projected levels, finest first, row by row."""
        levels = [proj(x) for proj, x in zip(self.input_proj, features, strict=True)]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)

    def select(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The Q tokens of the highest class logit: their [N, Q, width], box and class logits.

        The box head runs on the chosen tokens only, which gives what choosing from all gives.
        """
        tokens = self.enc_output(memory if self.all_valid else memory * self.valid)
        scores = self.enc_score_head(tokens)
        chosen = scores.amax(-1).topk(self.queries, dim=1).indices.unsqueeze(-1)
        x = _gather(tokens, chosen)
        anchors = _gather(self.anchors.expand(memory.shape[0], -1, -1), chosen)
        return x, self.enc_bbox_head(x) + anchors, _gather(scores, chosen)

    def refine(
        self, place: int, x: Tensor, boxes: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Layer `place`: queries [N, Q, width] and box logits [N, Q, 4] -> both refined."""
        reference = boxes.sigmoid()
        x = self.layers[place](x, self.query_pos_head(reference), reference, memory, mask)
        return x, boxes.clamp(-LIMIT, LIMIT) + self.dec_bbox_head[place](x)


def _score_head(config: RTDetrConfig) -> nn.Linear:
    head = nn.Linear(config.width, config.classes)
    nn.init.constant_(head.bias, math.log(PRIOR / (1 - PRIOR)))
    return head


def _box_head(config: RTDetrConfig) -> Perceptron:
    """Begins as zero: a box starts as its anchor."""
    head = Perceptron(config.width, config.width, config.width, 4)
    nn.init.zeros_(head.layers[-1].get_parameter("weight"))
    nn.init.zeros_(head.layers[-1].get_parameter("bias"))
    return head


def make_anchors(levels: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """One box for each cell: logits float32 [1, tokens, 4]; 1.0 where it is used, [1, tokens, 1].

    Boxes are centred in the cell, with sides 0.05, 0.1, 0.2 of the image on the three levels. One
    with a coordinate outside (0.01, 0.99) is not used: its logits are NO_ANCHOR.
    """
    boxes = []
    for place, (height, width) in enumerate(levels):
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = torch.stack([(column + 0.5) / width, (row + 0.5) / height], -1).reshape(-1, 2)
        boxes.append(torch.cat([centre, torch.full_like(centre, ANCHOR_SIDE * 2**place)], -1))
    anchors = torch.cat(boxes).unsqueeze(0)
    inside = (anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN)
    valid = inside.all(-1, keepdim=True)
    return torch.where(valid, anchors.logit(), NO_ANCHOR), valid.float()


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [N, Q, 1] of x [N, T, c] -> [N, Q, c]."""
    return x.gather(1, index.expand(-1, -1, x.shape[2]))
