"""Layers that the parts of RT-DETR share."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation; [N, in, H, W] -> [N, out, H/s, W/s].

    Padded by half the kernel, so that only the stride changes the size.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.Identity() if act is None else act
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Perceptron(nn.Module):
    """Linear layers with ReLU between them over the last axis, of the given sizes."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """Linear, activation, linear over the last axis, [..., width] -> the same."""

    def __init__(self, width: int, inner: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.act = act
        self.fc2 = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention whose queries and keys, not values, have the position added.

    x and position: [N, T, width] (position may be [1, T, width]); mask: None, or what is added to
    the scores, [T, T], which only the denoising of training has.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        placed = x + position
        q = self._by_head(self.q_proj(placed))
        k = self._by_head(self.k_proj(placed))
        v = self._by_head(self.v_proj(x))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
