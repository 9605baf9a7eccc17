"""Which CPU a library is compiled for, and whether this machine can run it."""

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.errors import TargetError
from iqvit.tvm_backend.kernels.isa import (
    ARM_DOTPROD,
    ARM_I8MM,
    ARM_NEON,
    AVX2,
    AVX512_VBMI,
    AVX512_VNNI,
    AVX_VNNI,
    Isa,
)

if TYPE_CHECKING:
    import tvm

__all__ = [
    "HOST",
    "TARGETS",
    "Target",
    "cpu_name",
    "host_features",
    "missing_features",
    "names",
    "resolve",
]

CPUINFO = Path("/proc/cpuinfo")
HOST = "host"

# What x86-64-v3 means to a compiler, in the names of /proc/cpuinfo (`abm` is lzcnt).
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Target:
    """One kind of CPU that libraries are compiled for."""

    name: str
    llvm: tuple[tuple[str, Any], ...]
    """TVM's target attributes; see `tvm_dict`."""
    isa: Isa | None
    """The vector instruction set of the fast kernels; None: plain loops only."""
    features: tuple[str, ...]
    """What the CPU must have, in the names of Linux's /proc/cpuinfo: its line `flags` (x86) or
    `Features` (ARM)."""
    machine: str | None = None
    """The machine that libraries are linked for (`linker.linker`); None: the one at hand."""

    @property
    def tvm_dict(self) -> dict[str, Any]:
        """The target as TVM takes it."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in self.llvm}

    def tvm_target(self) -> "tvm.target.Target":
        """The target as a TVM object."""
        from tvm.target import Target as TvmTarget

        return TvmTarget(self.tvm_dict)


def _arm(name: str, isa: Isa, attributes: tuple[str, ...], features: tuple[str, ...]) -> Target:
    """A target of 64-bit ARM under Linux; every such CPU has NEON."""
    llvm = (("kind", "llvm"), ("mtriple", "aarch64-linux-gnu"), ("mattr", ("+neon", *attributes)))
    return Target(name, llvm, isa, ("asimd", *features), "aarch64")


def _avx512(name: str, isa: Isa, attributes: tuple[str, ...], features: tuple[str, ...]) -> Target:
    # -prefer-256-bit: LLVM's tuning avoids 512-bit vectors for the sake of sparse use of them in
    # float code; here everything is vectors, and look-ups and packs gain from the full width.
    mattr = (*(f"+{attribute}" for attribute in attributes), "-prefer-256-bit")
    llvm = (("kind", "llvm"), ("mcpu", "x86-64-v4"), ("mattr", mattr))
    return Target(name, llvm, isa, (*_V4, *features))


# Best first: `host` is the first that the machine can run.
_TARGETS = (
    _avx512("x86-vbmi", AVX512_VBMI, ("avx512vnni", "avx512vbmi"), ("avx512_vnni", "avx512vbmi")),
    _avx512("x86-vnni", AVX512_VNNI, ("avx512vnni",), ("avx512_vnni",)),
    Target(
        "x86-avxvnni",
        (("kind", "llvm"), ("mcpu", "x86-64-v3"), ("mattr", ("+avxvnni",))),
        AVX_VNNI,
        (*_V3, "avx_vnni"),
    ),
    Target("x86-avx2", (("kind", "llvm"), ("mcpu", "x86-64-v3")), AVX2, _V3),
    _arm("arm64-i8mm", ARM_I8MM, ("+dotprod", "+i8mm"), ("asimddp", "i8mm")),
    _arm("arm64-dotprod", ARM_DOTPROD, ("+dotprod",), ("asimddp",)),
    _arm("arm64-neon", ARM_NEON, (), ()),
    Target("portable", (("kind", "llvm"),), None, ()),
)
TARGETS = {target.name: target for target in _TARGETS}


def names() -> tuple[str, ...]:
    """Every name that `resolve` knows, `host` first."""
    return (HOST, *TARGETS)


def resolve(name: str) -> Target:
    """The target called `name`; `host` is the best one that this CPU can run.

    Raises `TargetError` for a name that no target has.
    """
    if name == HOST:
        available = host_features()
        return next(t for t in _TARGETS if not missing_features(t.features, available))
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}; the targets are {', '.join(names())}")
    return TARGETS[name]


def host_features() -> frozenset[str]:
    """The feature flags of this CPU, from /proc/cpuinfo.

    Where there is none (not Linux) or where the CPU is neither x86-64 nor 64-bit ARM, no feature is
    known: `host` then means `portable`, which runs everywhere.
    """
    line_of = {"x86_64": "flags", "amd64": "flags", "aarch64": "Features"}
    wanted = line_of.get(platform.machine().lower())
    if wanted is None or not CPUINFO.is_file():
        return frozenset()
    for line in CPUINFO.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return frozenset(value.split())
    return frozenset()


def cpu_name() -> str:
    """The CPU's name for reports: `model name` of /proc/cpuinfo, or what Python knows."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def missing_features(
    required: Collection[str], available: Collection[str] | None = None
) -> list[str]:
    """The required features that this CPU (or `available`) lacks, in the order given."""
    have = host_features() if available is None else available
    return [feature for feature in required if feature not in have]
