"""From a Relax module of finished TIR functions to an executable."""

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import PIPELINE_MAP

from iqvit.tvm_backend.check import assert_no_float
from iqvit.tvm_backend.kernels.vector import KERNEL
from iqvit.tvm_backend.targets import Target

Passes = tuple[Callable[[], Any], ...]

# TVM's default pipeline also legalises, fuses and looks for reshapes. There is nothing to legalise,
# the kernels are already fused, and the search for reshapes fails (an internal error) on functions
# without schedulable blocks, as ours are.
_RELAX: Passes = (
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

# The operators' own lowerings are tensor expressions in blocks.
_BLOCKS: Passes = (
    s_tir.transform.CanonicalizeLoop,
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.CompactBufferAllocation,
    s_tir.transform.LowerMatchBuffer,
    s_tir.transform.LowerOpaqueBlock,
)

# TVM's default list has thirty passes more, most for GPUs and for schedules: on kernels that are
# written out they change nothing and take most of the time of a compilation.
_TIR: Passes = (
    tirx.transform.FlattenBuffer,
    lambda: tirx.transform.NarrowDataType(32),
    tirx.transform.StorageRewrite,
    tirx.transform.StmtSimplify,
    tirx.transform.RemoveNoOp,
    tirx.transform.VerifyMemory,
    tirx.transform.AnnotateEntryFunc,
    tirx.transform.SplitHostDevice,
    tirx.transform.MakePackedAPI,
)
_NAME = "iqvit"


def build(module: tvm.IRModule, target: Target) -> tvm.runtime.Executable:
    """Compile a module whose `main` only calls its TIR functions (`call_tir`) for `target`.

    Raises `GraphError` if any float type occurs in it (`assert_no_float`).
    """
    assert_no_float(module)
    pipelines: dict[str, Any] = PIPELINE_MAP  # typed as passes that are given a context too
    pipelines[_NAME] = lambda: (_lower_tir, finalize_host_passes, finalize_device_passes)
    return relax.build(
        module, target.tvm_target(), relax_pipeline=_sequence(_RELAX), tir_pipeline=_NAME
    )


def _sequence(passes: Passes) -> Any:
    return tvm.transform.Sequential([make() for make in passes])


def _lower_tir(module: Any) -> tvm.IRModule:
    # An IRModule, whose annotations leave out that it has attributes.
    kernels = {name: f for name, f in module.functions_items() if f.attrs.get(KERNEL)}
    others = {name: f for name, f in module.functions_items() if name not in kernels}
    if others:
        others = dict(_sequence(_BLOCKS)(tvm.IRModule(others)).functions_items())
    return _sequence(_TIR)(tvm.IRModule({**kernels, **others}, attrs=module.attrs))
