"""The plain lowering of `deform_attention`, stage by stage as its definition."""

from typing import Any

from iqvit.inttype import IntType
from iqvit.ops.taps import TeLib, cell_taps, centre


def emit(op: Any, bb: Any, args: list[Any], types: list[IntType], out: IntType) -> Any:
    """Emits `op` (a `DeformAttention`) and returns its expression."""
    from tvm import relax

    from iqvit.ops import te
    from iqvit.ops.te import tirx, tvm_te

    queries, samples = types[1].shape[1], op.samples_a_head
    heads = types[3].shape[-1] // samples
    depth = types[0].shape[-1] // heads
    before, after = centre(op.mode, op.fraction, op.place_shift)
    by_sample = (queries, heads, samples)

    def body(value: Any, boxes: Any, offsets: Any, logits: Any, geometry: Any) -> Any:
        def place(q: Any, h: Any, k: Any, axis: int) -> Any:
            centred = te.i64(boxes(0, q, axis)) * geometry(k, 3 + axis)
            extent = te.i64(boxes(0, q, 2 + axis)) * geometry(k, 5 + axis)
            moved = te.i64(offsets(0, q, (h * samples + k) * 2 + axis)) * extent
            scaled = (centred + moved + te.const64(before)) >> te.const64(op.place_shift)
            return te.i32(scaled + te.const64(after))

        x = tvm_te.compute(by_sample, lambda q, h, k: place(q, h, k, 0), "x")
        y = tvm_te.compute(by_sample, lambda q, h, k: place(q, h, k, 1), "y")

        def tap(q: Any, h: Any, k: Any, t: Any, part: int) -> Any:
            width, height = te.i32(geometry(k, 0)), te.i32(geometry(k, 1))
            at = x(q, h, k), y(q, h, k)
            taps = cell_taps(TeLib, op.mode, op.fraction, *at, width, height)
            chosen = tirx.const(0, "int32")
            for index, pair in enumerate(taps):
                this = pair[part]
                this = tirx.const(this, "int32") if isinstance(this, int) else this
                chosen = tirx.Select(t == index, this, chosen)
            return chosen

        def logit(q: Any, h: Any, k: Any) -> Any:
            return te.i32(logits(0, q, h * samples + k))

        m, n = (tvm_te.reduce_axis((0, samples), name) for name in "mn")
        top = tvm_te.compute(by_sample[:2], lambda q, h: tvm_te.max(logit(q, h, m), axis=m), "top")
        p = tvm_te.compute(
            by_sample, lambda q, h, k: op.exp.te(top(q, h) - logit(q, h, k), op.full), "p"
        )
        row_sum = tvm_te.compute(
            by_sample[:2], lambda q, h: tvm_te.sum(p(q, h, n), axis=n), "row_sum"
        )
        token = tvm_te.compute(
            (*by_sample, op.taps),
            lambda q, h, k, t: te.i32(geometry(k, 2)) + tap(q, h, k, t, 0),
            "token",
        )
        half = tirx.const((1 << (2 * op.fraction)) >> 1, "int32")
        share = tvm_te.compute(
            (*by_sample, op.taps),
            lambda q, h, k, t: (p(q, h, k) * tap(q, h, k, t, 1) + half) >> (2 * op.fraction),
            "share",
        )
        k = tvm_te.reduce_axis((0, samples), "k")
        t = tvm_te.reduce_axis((0, op.taps), "t")

        def weighted(b: Any, q: Any, c: Any) -> Any:
            h = tirx.floordiv(c, depth)
            read = te.i32(value(b, token(q, h, k, t), c))
            return tvm_te.sum(read * share(q, h, k, t), axis=[k, t])

        acc = tvm_te.compute(out.shape, weighted, "acc")

        def finish(b: Any, q: Any, c: Any) -> Any:
            total = te.i64(row_sum(q, tirx.floordiv(c, depth)))
            reciprocal = tirx.truncdiv(te.const64(op.numerator), total)
            result = te.i64(acc(b, q, c)) * reciprocal + te.const64(op.offset_out)
            result = te.requantise(result, te.const64(1), op.shift)
            return te.saturate(result, op.dtype, op.lo, op.hi)

        return tvm_te.compute(out.shape, finish, "attended")

    geometry = relax.const(op.geometry(), "int64")  # left to itself it becomes int32
    return bb.emit_te(body, *args, geometry, primfunc_name_hint="deform_attention")
