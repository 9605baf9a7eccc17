"""Targets: which one a CPU gets, and what is said where it lacks something."""

import pytest

from iqvit.errors import TargetError
from iqvit.tvm_backend import targets
from iqvit.tvm_backend.kernels.isa import (
    ARM_DOTPROD,
    ARM_I8MM,
    ARM_NEON,
    AVX2,
    AVX512_VBMI,
    AVX512_VNNI,
    AVX_VNNI,
)
from iqvit.tvm_backend.peak import measure_peak
from iqvit.tvm_backend.targets import TARGETS, missing_features, names, resolve

V3 = TARGETS["x86-avx2"].features


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (TARGETS["x86-vbmi"].features, "x86-vbmi"),
        (TARGETS["x86-vnni"].features, "x86-vnni"),
        (TARGETS["x86-avxvnni"].features, "x86-avxvnni"),
        (V3, "x86-avx2"),
        ((*V3, "avx512f", "avx512bw"), "x86-avx2"),
        (("sse2",), "portable"),
        ((), "portable"),
    ],
)
def test_host_is_the_best_that_the_flags_allow(flags, expected, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: Some CPU\nflags\t\t: {' '.join(flags)}\nbugs\t: none\n")
    monkeypatch.setattr(targets, "CPUINFO", cpuinfo)
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert resolve("host").name == expected
    assert targets.cpu_name() == "Some CPU"


def test_without_cpuinfo_or_off_x86_the_host_is_portable(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CPUINFO", tmp_path / "absent")
    assert resolve("host").name == "portable"
    monkeypatch.undo()
    monkeypatch.setattr(targets.platform, "machine", lambda: "riscv64")
    assert resolve("host").name == "portable"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("fp asimd evtstrm crc32", "arm64-neon"),
        ("fp asimd asimddp", "arm64-dotprod"),
        ("fp asimd asimddp i8mm sve", "arm64-i8mm"),
    ],
)
def test_host_of_an_arm_board(features, expected, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nFeatures\t: {features}\nCPU part\t: 0xd0b\n")
    monkeypatch.setattr(targets, "CPUINFO", cpuinfo)
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert resolve("host").name == expected


def test_every_name_resolves_and_targets_are_what_tvm_takes():
    x86, arm = [AVX512_VBMI, AVX512_VNNI, AVX_VNNI, AVX2], [ARM_I8MM, ARM_DOTPROD, ARM_NEON]
    assert [TARGETS[name].isa for name in names()[1:]] == [*x86, *arm, None]
    for name in names():
        assert resolve(name).tvm_target().kind.name == "llvm"


def test_an_unknown_target_is_told_with_the_list():
    with pytest.raises(
        TargetError, match=r"unknown target 'x86-sse'.*host, x86-vbmi, x86-vnni, .*portable"
    ):
        resolve("x86-sse")


def test_missing_features_are_named_in_order():
    assert missing_features(["avx", "amx_int8", "avx2"], {"avx"}) == ["amx_int8", "avx2"]


@pytest.mark.parametrize("name", ["x86-vbmi", "x86-vnni", "x86-avx2"])
def test_peak_is_measured(name):
    target = TARGETS[name]
    missing = missing_features(target.features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    assert measure_peak(target) > 1e9


def test_peak_of_a_target_without_dot_product_is_refused():
    with pytest.raises(TargetError, match="portable has no dot instruction"):
        measure_peak(TARGETS["portable"])
