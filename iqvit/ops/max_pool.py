"""`max_pool`: the largest of every window of an image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from iqvit.inttype import LIMITS, IntType
from iqvit.ops.base import Op, Sample, want


@dataclass(frozen=True)
class MaxPool(Op):
    """`out[..., i, j] = max x[..., i*s : i*s+k, j*s : j*s+k]`; exact, the scale is the input's.

    Windows beyond the border see the pixels inside only, as PyTorch's (`ceil_mode=False`).
    """

    NAME: ClassVar[str] = "max_pool"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def infer(self, *args: IntType) -> IntType:
        (x,) = args
        want(len(x.shape) == 4, f"images are [1, C, H, W], not {x.shape}")
        halves = all(2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True))
        want(halves, f"padding {self.padding} is more than half of the kernel {self.kernel}")
        sizes = (
            (size + 2 * p - k) // s + 1
            for size, p, k, s in zip(
                x.shape[2:], self.padding, self.kernel, self.stride, strict=True
            )
        )
        shape = (*x.shape[:2], *sizes)
        want(min(shape) > 0, f"the image {x.shape} is smaller than the window {self.kernel}")
        return IntType(x.dtype, shape, x.lo, x.hi)

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        (x,) = args
        pooled = functional.max_pool2d(x.to(torch.float64), self.kernel, self.stride, self.padding)
        return pooled.to(x.dtype)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.te import tirx, tvm_te

        (_, _, height, width), (ph, pw) = types[0].shape, self.padding

        def body(x: Any) -> Any:
            dy = tvm_te.reduce_axis((0, self.kernel[0]), "dy")
            dx = tvm_te.reduce_axis((0, self.kernel[1]), "dx")

            def element(b: Any, c: Any, i: Any, j: Any) -> Any:
                row, column = i * self.stride[0] + dy - ph, j * self.stride[1] + dx - pw
                inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
                least = tirx.const(LIMITS[types[0].dtype][0], types[0].dtype)
                value = tirx.if_then_else(inside, x(b, c, row, column), least)
                return tvm_te.max(value, axis=[dy, dx])

            return tvm_te.compute(out.shape, element, "pooled")

        return bb.emit_te(body, *args, primfunc_name_hint="max_pool")

    @classmethod
    def samples(cls) -> list[Sample]:
        x = IntType("int8", (1, 2, 7, 8), *LIMITS["int8"])
        return [
            Sample(cls((3, 3), (2, 2), (1, 1)), (x,), lambda x: functional.max_pool2d(x, 3, 2, 1)),
            Sample(
                cls((2, 3), (1, 2), (0, 0)),
                (x,),
                lambda x: functional.max_pool2d(x, (2, 3), (1, 2)),
            ),
        ]
