"""The integer exponential of softmax and attention: `full * exp(-d * c)` for integers `d >= 0`."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from iqvit.arith import looked_up, require_int32
from iqvit.ops.base import want

# 2**-f on [0, 1) as 1 - f*(C1 - f*(C2 - f*C3)) in 15 fractional bits; C1 - C2 + C3 = 1/2, so that
# neighbouring octaves meet. Minimax fit; error 1.3e-4 of full scale with all roundings.
C1, C2, C3 = 22665, 7579, 1298
ONE = 1 << 15
OCTAVES = 17  # below 2**-17 of full scale nothing is left of 15 bits


@dataclass(frozen=True)
class Exp2:
    """`t = min(d >> pre, cap) * multiplier >> shift` is `d*c*log2(e)` with 15 fractional bits; the
    result is `full * 2**-t`, rounded half up. Everything stays in int32.

    Integers only: `pre`, `cap`, `multiplier`, `shift` come from the real factor c by `of`.
    """

    pre: int
    cap: int
    multiplier: int
    shift: int

    def __post_init__(self) -> None:
        want(
            0 <= self.pre <= 31 and 0 <= self.shift <= 31, "a shift of the exponential leaves 0..31"
        )
        want(self.cap >= 0 and self.multiplier >= 0, "the exponential's integers are not negative")
        require_int32(0, self.cap * self.multiplier, "exponent")

    @staticmethod
    def of(factor: float) -> "Exp2":
        """For `exp(-d * factor)`, factor > 0."""
        octaves = factor * math.log2(math.e)
        pre = max(0, math.ceil(math.log2(OCTAVES / octaves / 32767)))
        unit = octaves * 2.0**pre
        shift = max(0, 15 - math.floor(math.log2(unit * ONE)))
        cap = min(32767, math.ceil(OCTAVES / unit))
        return Exp2(pre, cap, round(unit * ONE * 2**shift), shift)

    def run(self, d: torch.Tensor, full: int) -> torch.Tensor:
        """`full * 2**-t` as int32 in 0..full, for int32 or int64 d >= 0."""
        steps = (d >> self.pre).clamp(max=self.cap)
        if d.numel() <= self.cap:
            return self._of_steps(steps.to(torch.int64), full)
        every = torch.arange(self.cap + 1, device=d.device)
        return looked_up(self._of_steps(every, full), steps)

    def _of_steps(self, steps: torch.Tensor, full: int) -> torch.Tensor:
        t = (steps * self.multiplier) >> self.shift
        t = t.clamp(max=OCTAVES * ONE - 1)
        octave, f = t >> 15, t & (ONE - 1)
        part = ONE - ((f * (C1 - ((f * (C2 - ((f * C3) >> 15))) >> 15))) >> 15)
        return ((part * full + (1 << (14 + octave))) >> (15 + octave)).to(torch.int32)

    def te(self, d: Any, full: int) -> Any:
        """`run` as an int32 tensor expression of an int32 d."""
        from iqvit.ops.te import tirx

        def const(value: int) -> Any:
            return tirx.const(value, "int32")

        t = (tirx.min(d >> const(self.pre), const(self.cap)) * const(self.multiplier)) >> const(
            self.shift
        )
        t = tirx.min(t, const(OCTAVES * ONE - 1))
        octave, f = t >> const(15), t & const(ONE - 1)
        inner = const(C2) - ((f * const(C3)) >> const(15))
        part = const(ONE) - ((f * (const(C1) - ((f * inner) >> const(15)))) >> const(15))
        # As `run` rounds it, without the power of two, which LLVM makes on plain SSE2 by converting
        # a float.
        halves = tirx.shift_right(part * const(full), const(14) + octave)
        return (halves + const(1)) >> const(1)


def full_scale(bits: int) -> int:
    """The integer that stands for a row maximum: 255 in uint8, 32767 in int16."""
    return 255 if bits == 8 else 32767
