"""`deform_attention`: multi-scale deformable attention as one operator."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from iqvit.arith import clamp_range, requantise, require_int32, saturate
from iqvit.errors import OverflowProofError
from iqvit.inttype import LIMITS, IntType, QParams
from iqvit.ops.base import Op, Sample, want
from iqvit.ops.exp2 import Exp2
from iqvit.ops.taps import TorchLib, cell_taps, centre, check_mode
from iqvit.sampling import MODES, deformable_attention

FULL = {8: 255, 16: 32767}  # the largest weight of a query and head, by its bits
PLACE_BITS = 61  # of a place before its shift


@dataclass(frozen=True)
class DeformAttention(Op):
    """`iqvit.sampling.deformable_attention` (Zhu et al., arXiv 2010.04159, eq. 3) in integers.

    value int8 `[1, T, heads*D]`, boxes int16 `[1, Q, 4]` (cx, cy, w, h), offsets int16
    `[1, Q, heads*K*2]`, logits of any width `[1, Q, heads*K]`; all with zero point 0. Of sample k,
    along x and along y, and of level l that it belongs to:

        place = (c * box[l] + offset * extent * step[k] + before >> place_shift) + after
        p = full * 2**-t(max(logits) - logit)                   see `Exp2`
        acc += value[tap] * (p * weight + half >> 2*fraction)   for the taps of the place
        out = clamp((acc * (numerator // sum(p)) + offset_out + half) >> shift)

    Places are in cells of the level with `fraction` bits; `taps` says which cells they read. The
    products of a place are rounded once, however boxes and offsets are scaled, and the softmax
    costs one division a query and head. Accumulators are int32, proved. Error: half an output
    step; for bilinear `2**-(fraction + 1)` cells along each axis; `2 * taps` steps of `full`.
    """

    NAME: ClassVar[str] = "deform_attention"
    mode: str
    fraction: int
    full: int
    shapes: tuple[int, ...]
    points: tuple[int, ...]
    box: tuple[int, ...]
    step: tuple[int, ...]
    place_shift: int
    pre: int
    cap: int
    exp_multiplier: int
    exp_shift: int
    numerator: int
    offset_out: int
    shift: int
    dtype: str
    lo: int
    hi: int

    @staticmethod
    def of(
        qvalue: QParams,
        qboxes: QParams,
        qoffsets: QParams,
        qlogits: QParams,
        qout: QParams,
        shapes: list[int],
        points: list[int],
        factors: list[float],
        mode: str,
        dtype: str,
        fraction: int = 8,
        bits: int = 16,
    ) -> "DeformAttention":
        """The operator for per-tensor scales; the other arguments as in `deformable_attention`,
        with `fraction` bits of places (bilinear) and `bits` (8 or 16) of weights."""
        fraction = fraction if mode == "bilinear" else 0
        sizes = [(w, h) for h, w in zip(shapes[::2], shapes[1::2], strict=True)]
        of_sample = [s for s, count in zip(sizes, points, strict=True) for _ in range(count)]
        unit = float(qboxes.scale)
        box = [unit * extent for size in sizes for extent in size]
        step = [
            unit * float(qoffsets.scale) * factor * extent
            for factor, size in zip(factors, of_sample, strict=True)
            for extent in size
        ]
        largest = max(max(box) * 2.0**15, max(map(abs, step)) * 2.0**30) * 2.0**fraction
        place_shift = min(PLACE_BITS - 1 - math.ceil(math.log2(largest)), 46)
        scaled = 2.0 ** (fraction + place_shift)
        exp = Exp2.of(float(qlogits.scale))
        ratio = float(qvalue.scale / qout.scale)
        shift = min(31 + math.floor(math.log2(FULL[bits] / ratio)), 46)
        return DeformAttention(
            mode,
            fraction,
            FULL[bits],
            tuple(shapes),
            tuple(points),
            tuple(round(x * scaled) for x in box),
            tuple(round(x * scaled) for x in step),
            place_shift,
            exp.pre,
            exp.cap,
            exp.multiplier,
            exp.shift,
            round(ratio * 2**shift),
            round(float(qout.zero_point) * 2**shift),
            shift,
            dtype,
            *LIMITS[dtype],
        )

    @property
    def exp(self) -> Exp2:
        """The exponential of the weights."""
        return Exp2(self.pre, self.cap, self.exp_multiplier, self.exp_shift)

    @property
    def samples_a_head(self) -> int:
        """K: of all levels together."""
        return sum(self.points)

    @property
    def taps(self) -> int:
        """Cells that a sample reads."""
        return 4 if self.mode == "bilinear" else 1

    def geometry(self) -> np.ndarray:
        """Of every sample: width, height and first token of its level, box factors and step factors
        along x and y; int64 `[K, 7]`."""
        rows, first, k = [], 0, 0
        for level, count in enumerate(self.points):
            h, w = self.shapes[2 * level : 2 * level + 2]
            for _ in range(count):
                box = self.box[2 * level : 2 * level + 2]
                rows.append((w, h, first, *box, *self.step[2 * k : 2 * k + 2]))
                k += 1
            first += h * w
        return np.array(rows, dtype=np.int64)

    def infer(self, *args: IntType) -> IntType:
        value, boxes, offsets = args[:3]
        self._check(*args)
        self.accumulator(*args)
        before, after = centre(self.mode, self.fraction, self.place_shift)
        moves = [o * e for o in (offsets.lo, offsets.hi) for e in (boxes.lo, boxes.hi)]
        for _, _, _, *factors in self.geometry().tolist():
            for box, step in zip(factors[:2], factors[2:], strict=True):
                at, by = (boxes.lo * box, boxes.hi * box), [m * step for m in moves]
                ends = [min(at) + min(by) + before, max(at) + max(by) + before]
                want(max(map(abs, ends)) < 1 << 62, "a place leaves 62 bits")
                places = [(end >> self.place_shift) + after for end in ends]
                require_int32(min(places), max(places), "place")
        want(self.numerator // self.full < 1 << 31, "the reciprocal of a row sum leaves 31 bits")
        lo, hi = clamp_range(*self.unsaturated(value), self.lo, self.hi)
        return IntType(self.dtype, (1, boxes.shape[1], value.shape[-1]), lo, hi)

    def unsaturated(self, value: IntType) -> tuple[int, int]:
        """The range of the result before it saturates; `OverflowProofError` beyond 62 bits."""
        half = (1 << self.shift) >> 1
        # The weights of a head are at most their sum and half a step for every tap.
        spread = 1 + 2 * self.samples_a_head * self.taps / self.full
        ends = [math.ceil(abs(v) * self.numerator * spread) for v in (value.lo, value.hi)]
        lo = -ends[0] * (value.lo < 0) + self.offset_out + half
        hi = ends[1] * (value.hi > 0) + self.offset_out + half
        if max(abs(lo), abs(hi)) >= 1 << 62:
            raise OverflowProofError(f"the output range {lo}..{hi} leaves 62 bits")
        return lo >> self.shift, hi >> self.shift

    def _check(self, value: IntType, boxes: IntType, offsets: IntType, logits: IntType) -> None:
        check_mode(self.mode, self.fraction, MODES)
        want(self.full in FULL.values(), f"a largest weight of {self.full}")
        want(value.dtype == "int8" and len(value.shape) == 3, f"value {value} is not int8[1,T,C]")
        cells = sum(h * w for h, w in zip(self.shapes[::2], self.shapes[1::2], strict=True))
        want(value.shape[1] == cells, f"{value.shape[1]} tokens, the levels have {cells}")
        want(boxes.dtype == "int16" and boxes.shape[-1] == 4, f"boxes {boxes} are not int16[1,Q,4]")
        want(offsets.dtype == "int16", f"offsets are {offsets.dtype}, not int16")
        rows = (1, boxes.shape[1])
        width = logits.shape[-1]
        heads = width // self.samples_a_head
        want(width == heads * self.samples_a_head, f"{width} logits are not whole heads")
        want(value.shape[-1] % heads == 0, f"{value.shape[-1]} channels are not {heads} heads")
        for x, size in ((offsets, 2 * width), (logits, width), (boxes, 4)):
            want(x.shape == (*rows, size), f"{x.shape} is not {(*rows, size)}")
        require_int32(0, logits.hi - logits.lo, "logit difference")

    def accumulator(self, *args: IntType) -> tuple[int, int]:
        terms = self.samples_a_head * (self.full + self.taps)
        lo, hi = min(args[0].lo, 0) * terms, max(args[0].hi, 0) * terms
        require_int32(lo, hi, "weighted sum")
        return lo, hi

    def run(self, *args: torch.Tensor) -> torch.Tensor:
        value, boxes, offsets, logits = (x.to(torch.int64) for x in args)
        queries, count = boxes.shape[1], self.samples_a_head
        heads = logits.shape[-1] // count
        width, height, first, *factors = (
            torch.from_numpy(self.geometry()).to(value.device).unbind(1)
        )
        before, after = centre(self.mode, self.fraction, self.place_shift)
        moved = offsets.reshape(queries, heads, count, 2)
        x, y = (
            (
                (
                    boxes[0, :, None, None, axis] * factors[axis]
                    + moved[..., axis] * boxes[0, :, None, None, 2 + axis] * factors[2 + axis]
                    + before
                )
                >> self.place_shift
            )
            + after
            for axis in range(2)
        )
        rows = logits.reshape(queries, heads, count)
        p = self.exp.run(rows.amax(-1, keepdim=True) - rows, self.full).to(torch.int64)
        reciprocal = self.numerator // p.sum(-1, keepdim=True)
        by_head = value.reshape(value.shape[1], heads, -1)
        each = torch.arange(heads, device=value.device)[:, None]
        acc = torch.zeros((), dtype=torch.int64, device=value.device)
        for cell, weight in cell_taps(TorchLib, self.mode, self.fraction, x, y, width, height):
            share = requantise(p, weight, 2 * self.fraction)
            acc = acc + (by_head[first + cell, each] * share[..., None]).sum(2)
        out = requantise(acc * reciprocal + self.offset_out, 1, self.shift)
        return saturate(out.reshape(1, queries, -1), self.dtype, self.lo, self.hi)

    def macs(self, *args: IntType) -> int:
        value, boxes = args[:2]
        return boxes.shape[1] * value.shape[-1] * self.samples_a_head * self.taps

    def wide_macs(self, *args: IntType) -> int:
        return self.macs(*args)

    def lower(self, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
        from iqvit.ops.deform_attention_te import emit

        return emit(self, bb, args, types, out)

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [
            # queries, heads, depth, shapes, points, mode, fraction, scales of v, boxes, offsets
            (5, 2, 4, [4, 6, 2, 3], [2, 1], "bilinear", 8, 0.02, 2.0**-15, 2.0**-12, 0.025, "int8"),
            (3, 1, 8, [5, 5], [4], "bilinear", 6, 0.02, 3.3e-5, 1e-4, 0.0001, "int16"),
            (4, 2, 4, [4, 6, 3, 2], [3, 2], "discrete", 0, 0.03, 2.0**-15, 2.0**-11, 0.03, "int8"),
            (4, 1, 4, [3, 5], [3], "nearest", 0, 0.03, 2.0**-15, 2.0**-11, 0.03, "int8"),
            (5, 2, 4, [4, 6], [3], "bilinear", 3, 0.02, 2.0**-15, 2.0**-12, 0.02, "int8", 8),
        ]
        return [_sample(*case) for case in cases]


def _sample(
    queries, heads, depth, shapes, points, mode, fraction, sv, sb, so, sout, dtype, bits=16
):
    count = sum(points)
    factors = [0.5 / n for n in points for _ in range(n)]
    if mode != "bilinear":  # binary fractions, so that both sides place on the same cell
        factors = [0.125] * count
    qv, qb, qo, ql, qout = (QParams.of(s) for s in (sv, sb, so, 0.0007, sout))
    op = DeformAttention.of(
        qv, qb, qo, ql, qout, shapes, points, factors, mode, dtype, fraction, bits
    )
    tokens = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    types = (
        IntType("int8", (1, tokens, heads * depth), -127, 127),
        IntType("int16", (1, queries, 4), 0, 32767),
        IntType("int16", (1, queries, heads * count * 2), *LIMITS["int16"]),
        IntType("int16", (1, queries, heads * count), *LIMITS["int16"]),
    )
    blur = 2 * 2.0 ** -(fraction + 1) * 254 if mode == "bilinear" else 0.0
    adverse = 127 * count * (op.taps + 10) / op.full
    return Sample(
        op,
        types,
        lambda v, b, o, z: deformable_attention(v, b, o, z, shapes, points, factors, mode),
        (qv, qb, qo, ql),
        qout,
        error=0.6 + (blur + adverse) * sv / sout,
        macs=queries * heads * depth * count * op.taps,
    )
