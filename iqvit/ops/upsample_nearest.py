"""`upsample_nearest`: every output pixel is the input pixel whose area it lies in."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class UpsampleNearest(Op):
    """`out[..., y, x] = in[..., floor(y * h / height), floor(x * w / width)]`; exact.

    Any size, larger or smaller. torch's `nearest` evaluates the same rule in float32, which for
    some sizes that are no multiples rounds to a neighbour; the integer rule has no such cases.
    """

    NAME: ClassVar[str] = "upsample_nearest"
    height: int
    width: int

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(len(x.shape) >= 2, f"x is {x.shape}, not [..., height, width]")
        want(min(self.height, self.width) >= 1, f"the size {self.height}x{self.width} is empty")
        return IntType(x.dtype, (*x.shape[:-2], self.height, self.width), x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        (x,) = args
        rows = torch.arange(self.height, device=x.device) * x.shape[-2] // self.height
        columns = torch.arange(self.width, device=x.device) * x.shape[-1] // self.width
        return x[..., rows[:, None], columns]

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import const64, tirx, tvm_te

        height, width = types[0].shape[-2:]

        def body(x: Any) -> Any:
            def element(*i: Any) -> Any:
                row = tirx.floordiv(i[-2] * const64(height), const64(self.height))
                column = tirx.floordiv(i[-1] * const64(width), const64(self.width))
                return x(*i[:-2], row, column)

            return tvm_te.compute(out.shape, element, "upsampled")

        return bb.emit_te(body, *args, primfunc_name_hint="upsample_nearest")

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [("int8", (1, 3, 2, 5), 6, 10), ("int16", (1, 2, 3, 4), 7, 3)]
        return [
            Sample(
                cls(height, width),
                (IntType(kind, shape, *LIMITS[kind]),),
                lambda x, size=(height, width): torch.nn.functional.interpolate(
                    x, size, mode="nearest"
                ),
            )
            for kind, shape, height, width in cases
        ]
