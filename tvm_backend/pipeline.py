"""From a Relax module of finished TIR functions to an executable."""

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from iqvit.tvm_backend.check import assert_no_float
from iqvit.tvm_backend.targets import Target

# TVM's default pipeline also legalises, fuses and looks for reshapes. There is nothing to legalise,
# the kernels are already fused, and the search for reshapes fails (an internal error) on functions
# without schedulable blocks, as ours are.
_PASSES: tuple[Callable[[], Any], ...] = (
    relax.transform.ToNonDataflow,
    relax.transform.RemovePurityChecking,
    relax.transform.CallTIRRewrite,
    relax.transform.StaticPlanBlockMemory,
    relax.transform.LowerAllocTensor,
    relax.transform.KillAfterLastUse,
    relax.transform.LowerRuntimeBuiltin,
    relax.transform.ComputePrimValue,
    relax.transform.VMShapeLower,
    relax.transform.AttachGlobalSymbol,
)


def build(module: tvm.IRModule, target: Target) -> relax.VMExecutable:
    """Compile a module whose `main` only calls its TIR functions (`call_tir`) for `target`.

    Raises `GraphError` if any float type occurs in it (`assert_no_float`).
    """
    assert_no_float(module)
    pipeline = tvm.transform.Sequential([make() for make in _PASSES])
    return relax.build(module, target.tvm_target(), relax_pipeline=pipeline)
