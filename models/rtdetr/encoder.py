"""The hybrid encoder of RT-DETR: attention within the coarsest level, convolutions across levels.

Source: Zhao et al. (2024), section 4.2: AIFI and CCFM; the fusion blocks are CSP blocks of RepVGG
blocks (Ding et al., "RepVGG", 2021).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from iqvit.models.rtdetr.config import RTDetrConfig
from iqvit.models.rtdetr.layers import ConvNorm, FeedForward, SelfAttention

TEMPERATURE = 10000.0


class AifiLayer(nn.Module):
    """Post-norm transformer layer, [N, T, width] -> the same."""

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.ffn = FeedForward(config.width, config.encoder_ffn, nn.GELU())
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position))
        return self.norm2(x + self.ffn(x))


class RepVggBlock(nn.Module):
    """SiLU of the sum of a 3x3 and a 1x1 convolution, which are one 3x3 convolution in the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.conv1(x) + self.conv2(x))


class CspRepLayer(nn.Module):
    """Fusion of two concatenated levels, [N, 2 * width, H, W] -> [N, width, H, W]."""

    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__()
        inner = int(config.width * config.expansion)
        self.conv1 = ConvNorm(2 * config.width, inner, 1, act=nn.SiLU())
        self.conv2 = ConvNorm(2 * config.width, inner, 1, act=nn.SiLU())
        self.bottlenecks = nn.Sequential(*[RepVggBlock(inner) for _ in range(config.rep_blocks)])
        same = inner == config.width
        self.conv3 = nn.Identity() if same else ConvNorm(inner, config.width, 1, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class HybridEncoder(nn.Module):
    """Three feature maps [N, channels, H/s, W/s] -> three of [N, width, H/s, W/s]."""

    position: Tensor

    def __init__(self, config: RTDetrConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = config.width
        self.grid = config.levels[-1]
        self.input_proj = nn.ModuleList(ConvNorm(n, width, 1) for n in channels)
        self.aifi = nn.ModuleList(AifiLayer(config) for _ in range(config.encoder_layers))
        self.lateral_convs = nn.ModuleList(
            ConvNorm(width, width, 1, act=nn.SiLU()) for _ in channels[1:]
        )
        self.fpn_blocks = nn.ModuleList(CspRepLayer(config) for _ in channels[1:])
        self.downsample_convs = nn.ModuleList(
            ConvNorm(width, width, 3, 2, act=nn.SiLU()) for _ in channels[1:]
        )
        self.pan_blocks = nn.ModuleList(CspRepLayer(config) for _ in channels[1:])
        self.register_buffer("position", sine_position(self.grid, width), persistent=False)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [proj(x) for proj, x in zip(self.input_proj, features, strict=True)]
        levels[-1] = self._attend(levels[-1])
        return self._bottom_up(self._top_down(levels))

    def _attend(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.aifi:
            tokens = layer(tokens, self.position)
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def _top_down(self, levels: list[Tensor]) -> list[Tensor]:
        """Coarse to fine; what is kept of a coarse level is what its lateral convolution gives."""
        top = levels[-1]
        kept = []
        for lateral, block, fine in zip(
            self.lateral_convs, self.fpn_blocks, reversed(levels[:-1]), strict=True
        ):
            top = lateral(top)
            kept.append(top)
            top = block(torch.cat([functional.interpolate(top, scale_factor=2.0), fine], dim=1))
        return [top, *reversed(kept)]

    def _bottom_up(self, levels: list[Tensor]) -> list[Tensor]:
        outputs = [levels[0]]
        for down, block, coarse in zip(
            self.downsample_convs, self.pan_blocks, levels[1:], strict=True
        ):
            outputs.append(block(torch.cat([down(outputs[-1]), coarse], dim=1)))
        return outputs


def sine_position(grid: tuple[int, int], width: int) -> Tensor:
    """Sine and cosine of row and column, float32 [1, H * W, width], row by row.

    The parts are sin(row), cos(row), sin(column), cos(column). For images that are not square the
    authors' code mixes up rows and columns; transformers' and this one do not.
    """
    part = width // 4
    frequency = TEMPERATURE ** -(torch.arange(part, dtype=torch.float64) / part)
    row, column = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (row, column)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, dim=1).float().unsqueeze(0)
