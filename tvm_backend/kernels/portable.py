"""The int8 GEMM in plain loops, for any CPU: the same operands and bits, unpacked weights."""

from iqvit.tvm_backend.kernels.gemm_form import Epilogue, Extra, Gemm
from iqvit.tvm_backend.kernels.requant import exact_int64
from iqvit.tvm_backend.kernels.script import IRBuilder, PrimFunc, T
from iqvit.tvm_backend.kernels.vector import function_attributes


def portable_gemm_kernel(
    gemm: Gemm,
    name: str,
    extras: tuple[Extra, ...] = (),
    epilogue: Epilogue | None = None,
) -> PrimFunc:
    """The GEMM as a TIR function `name(x, weight, bias, [mult,] *extras, out)`.

    As `gemm.gemm_kernel`, but weight int8 [n, k], bias int32 [n] and mult int32 [n] are as they
    come, and the epilogue gets one value at a time. Rows of x and of the weights are both
    contiguous along k, which is what compilers vectorise without being told.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr(function_attributes(name))
        x = T.arg("x", T.buffer((gemm.m, gemm.k), gemm.x_dtype))
        weight = T.arg("weight", T.buffer((gemm.n, gemm.k), "int8"))
        bias = T.arg("bias", T.buffer((gemm.n,), "int32"))
        mult = None
        if gemm.requant is not None:
            mult = T.arg("mult", T.buffer((gemm.n,), "int32"))
        buffers = tuple(T.arg(e.name, T.buffer(e.shape, e.dtype)) for e in extras)
        out = T.arg("out", T.buffer((gemm.m, gemm.n), gemm.out_dtype))
        with T.parallel(gemm.m * gemm.n) as cell:
            m, n = T.Bind(cell // gemm.n), T.Bind(cell % gemm.n)
            acc = T.alloc_buffer((1,), "int32", scope="local")
            T.buffer_store(acc, bias[n], [0])
            with T.serial(gemm.k) as k:
                product = T.Cast("int32", x[m, k]) * T.Cast("int32", weight[n, k])
                T.buffer_store(acc, acc[0] + product, [0])
            value = acc[0]
            if gemm.requant is not None and mult is not None:
                value = T.Cast(gemm.requant.dtype, exact_int64(value, mult[n], gemm.requant))
            if epilogue is not None:
                (value,) = epilogue([value], m, n, buffers)
            T.buffer_store(out, value, [m, n])
    return builder.get()
