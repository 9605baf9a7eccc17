"""The weights of a linear or convolution while they learn: real ones, rounded anew every step."""

import numpy as np
import torch
from torch import Tensor, nn

from iqvit.calibrated import Weight
from iqvit.training.integers.straight import bounded, learned_factor, straight, within

ROOM = 0.49
"""How far a weight is from its integer at most when training starts, in steps."""


class Product(nn.Module):
    """`forward()` gives the rounded weight as reals, whose gradient is that of the real weight.

    It starts with the integers that calibration chose: a given weight that rounds to another one is
    mirrored to its side of the boundary between them. One step size an output channel, or
    one for all (`shared`); where it is not `learned` it follows the channel's largest weight.

    weight: float32 `[N, ...]`. rounded: calibration's integers, scales and corrected bias. columns:
    the scale of the input for each column, broadcasting over the weight.
    """

    scale: Tensor
    columns: Tensor
    largest: Tensor

    def __init__(
        self,
        weight: Tensor,
        rounded: Weight,
        columns: Tensor,
        bits: int,
        *,
        shared: bool,
        learned: bool,
    ) -> None:
        super().__init__()
        self.most, self.shared = 2 ** (bits - 1) - 1, shared
        scale = torch.from_numpy(rounded.scale.copy())
        self.register_buffer("scale", scale)
        self.register_buffer("columns", columns.to(torch.float64).clone())
        codes = torch.from_numpy(rounded.q.copy()).to(torch.float64)
        steps = self._spread(scale) / self.columns
        self.weight = nn.Parameter((_inside(weight.double() / steps, codes) * steps).float())
        self.bias = nn.Parameter(torch.from_numpy(rounded.bias.copy()).to(torch.float32))
        with torch.no_grad():
            largest = self._largest(self.weight.double() * self.columns)
        filler = scale * self.most
        self.register_buffer("largest", torch.where(largest > 0, largest, filler))
        self.moved = nn.Parameter(torch.zeros(1 if shared else len(scale))) if learned else None

    def forward(self) -> Tensor:
        """The weight that the integers stand for, float32 `[N, ...]`."""
        with torch.no_grad():
            codes, scale = self._present()
            steps = self._spread(scale) / self.columns
            value = (codes * steps).to(torch.float32)
        if self.moved is None:
            return straight(self.weight, value)
        with torch.no_grad():
            bound = self.most * steps
            inside = within(self.weight, -bound, bound, steps)
        factor = self._spread(learned_factor(self.moved))
        return straight(self.weight, value, inside, factor, self.most)

    @torch.no_grad()
    def rounded(self, input_factor: float) -> Weight:
        """What conversion reads; the input's scale is `input_factor` times the calibrated one."""
        codes, scale = self._present()
        return Weight(
            codes.to(torch.int8).cpu().numpy(),
            (scale * input_factor).cpu().numpy(),
            self.bias.double().cpu().numpy().astype(np.float64),
        )

    def _present(self) -> tuple[Tensor, Tensor]:
        """The integers, rounded half up, float64 `[N, ...]`, and their scale, float64 `[N]`: at the
        start exactly the calibrated one."""
        units = self.weight.double() * self.columns
        if self.moved is not None:
            scale = self.scale * bounded(learned_factor(self.moved)).double()
        else:
            largest = self._largest(units)
            scale = self.scale * torch.where(largest > 0, largest / self.largest, 1.0)
        codes = units.div_(self._spread(scale)).add_(0.5).floor_().clamp_(-self.most, self.most)
        return codes, scale

    def _largest(self, units: Tensor) -> Tensor:
        """The largest of each channel's weights `[N, ...]`, float64 `[N]`."""
        largest = units.flatten(1).abs().amax(1)
        return largest.max().expand_as(largest) if self.shared else largest

    def _spread(self, vector: Tensor) -> Tensor:
        """`[N]` over the weight's axes."""
        return vector.reshape(-1, *[1] * (self.columns.ndim - 1))


def _inside(units: Tensor, codes: Tensor) -> Tensor:
    """Weights in steps, within ROOM of their integers.

    What is beyond is mirrored, not clamped: at the boundary a first small step would round all of
    them back at once, which with 4 bits ruins the model.
    """
    off = units - codes
    beyond = (off.abs() - ROOM).clamp(min=0)
    return codes + off.sign() * (off.abs() - 2 * beyond).clamp(min=0)
