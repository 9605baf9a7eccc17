"""The proof on the machine code: what counts as a float instruction, and what a library holds."""

import importlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from iqvit.errors import FileFormatError, GraphError
from iqvit.tvm_backend.float_instructions import is_float_arm, is_float_x86
from iqvit.tvm_backend.machine_code import assert_no_float_code, machine_code
from iqvit.tvm_backend.targets import TARGETS

X86 = TARGETS["x86-avx2"].tvm_dict
ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]}
TRIPLES = {"x86_64": X86, "aarch64": ARM}
code = importlib.import_module("iqvit.tvm_backend.machine_code")


def function(name, dtype, of):
    """`name(x, y)` of 64 elements: `y = of(x)`."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        x = T.arg("x", T.buffer((64,), dtype))
        y = T.arg("y", T.buffer((64,), dtype))
        with T.serial(64) as i:
            T.buffer_store(y, of(x[i]), [i])
    return builder.get()


def object_file(path, target, *functions):
    """Compiled for any machine by TVM's LLVM, not linked."""
    named = {f.attrs["global_symbol"]: f for f in functions}
    made = tvm.compile(tvm.IRModule(named), target=tvm.target.Target(target))
    made.mod.write_to_file(str(path))
    return path


@pytest.mark.parametrize("machine", TRIPLES)
def test_a_float_operation_is_found_by_function_and_instruction(machine, tmp_path):
    target = TRIPLES[machine]
    whole = function("whole", "int32", lambda v: v * 3 + 1)
    half = function("half", "float32", lambda v: v * T.float32(0.5))
    found = machine_code(object_file(tmp_path / "both.o", target, whole, half))
    assert found.machine == machine
    assert {item.function for item in found.found} == {"half_compute_"}
    assert "mul" in found.found[0].text
    with pytest.raises(GraphError, match=r"half_compute_ at 0x[0-9a-f]+: v?f?mul"):
        assert_no_float_code(tmp_path / "both.o")


@pytest.mark.parametrize("machine", TRIPLES)
def test_integers_have_none(machine, tmp_path):
    whole = function("whole", "int8", lambda v: v * T.int8(3) + T.int8(1))
    found = assert_no_float_code(object_file(tmp_path / "whole.o", TRIPLES[machine], whole))
    assert found.machine == machine
    assert found.instructions > 10
    assert found.summary.startswith(f"none in {found.instructions} of {machine}")


@pytest.mark.parametrize("machine", TRIPLES)
def test_conversions_count(machine, tmp_path):
    through = function(
        "through", "int32", lambda v: T.Cast("int32", T.Cast("float32", v) * T.float32(0.1))
    )
    found = machine_code(object_file(tmp_path / "through.o", TRIPLES[machine], through)).found
    texts = " ".join(item.text for item in found)
    assert "cvt" in texts


def test_half_precision_helpers_count_once_they_are_called(tmp_path):
    half = function("half", "float16", lambda v: v + v)
    target = {"kind": "llvm", "mcpu": "x86-64-v2"}  # without instructions for it
    found = machine_code(object_file(tmp_path / "half.o", target, half)).found
    assert {"half_compute_", "__truncsfhf2", "__extendhfsf2"} <= {item.function for item in found}


def test_calls_of_the_mathematical_library_count(tmp_path):
    root = function("root", "float32", lambda v: T.call_extern("float32", "expf", v))
    found = machine_code(object_file(tmp_path / "root.o", X86, root)).found
    assert any(item.function == "expf" for item in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vmovaps zmm0, zmm1", False),
        ("vmovups ymmword ptr [rax], ymm1", False),
        ("vbroadcastss zmm0, dword ptr [rax]", False),
        ("vxorps xmm0, xmm0, xmm0", False),
        ("vshufps ymm0, ymm1, ymm2, 0x88", False),
        ("vpermps zmm0, zmm1, zmm2", False),
        ("vpermi2pd zmm0, zmm1, zmm2", False),
        ("vblendvps ymm0, ymm1, ymm2, ymm3", False),
        ("vinsertps xmm0, xmm1, xmm2, 0x10", False),
        ("vpternlogd zmm0, zmm1, zmm2, 0x96", False),
        ("vpdpbusd zmm0, zmm1, zmm2", False),
        ("vpmaxsd zmm0, zmm1, zmm2", False),
        ("vpabsd zmm0, zmm1", False),
        ("movsd dword ptr [rdi], dword ptr [rsi]", False),
        ("rep movsd dword ptr [rdi], dword ptr [rsi]", False),
        ("movsd xmm0, qword ptr [rax]", False),
        ("tdpbusd tmm0, tmm1, tmm2", False),
        ("vaddps zmm0, zmm1, zmm2", True),
        ("mulsd xmm0, xmm1", True),
        ("vfmadd231ps zmm0, zmm1, zmm2", True),
        ("vcvtdq2ps zmm0, zmm1", True),
        ("cvttss2si eax, xmm0", True),
        ("vmaxps zmm0, zmm1, zmm2", True),
        ("vcmpltps k0, zmm0, zmm1", True),
        ("ucomisd xmm0, xmm1", True),
        ("vrndscaleps zmm0, zmm1, 1", True),
        ("vdpbf16ps zmm0, zmm1, zmm2", True),
        ("tdpbf16ps tmm0, tmm1, tmm2", True),
        ("vaddph zmm0, zmm1, zmm2", True),
        ("fld dword ptr [rax]", True),
        ("ldmxcsr dword ptr [rax]", True),
        ("pfadd mm0, mm1", True),
    ],
)
def test_what_counts_on_x86(text, expected):
    mnemonic, _, operands = text.rpartition("rep ")[2].partition(" ")
    assert is_float_x86(mnemonic, operands) == expected


@pytest.mark.parametrize(
    ("mnemonic", "expected"),
    [
        ("fmov", False),
        ("sdot", False),
        ("smmla", False),
        ("sadalp", False),
        ("bfi", False),
        ("bfxil", False),
        ("urecpe", False),
        ("fadd", True),
        ("fmla", True),
        ("scvtf", True),
        ("ucvtf", True),
        ("fcvtzs", True),
        ("fcmp", True),
        ("frintm", True),
        ("bfdot", True),
        ("bfcvt", True),
    ],
)
def test_what_counts_on_arm(mnemonic, expected):
    assert is_float_arm(mnemonic, "") == expected


def linked(tmp_path, assembly):
    source, library = tmp_path / "code.s", tmp_path / "code.so"
    source.write_text(assembly)
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    subprocess.run([compiler, "-shared", "-nostdlib", "-o", library, source], check=True)
    return library


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_dot_products_of_avx_vnni_are_known_and_data_as_code_is_not(tmp_path):
    dots = [
        "{vex} vpdpbusd %ymm1, %ymm2, %ymm3",
        "{vex} vpdpbusd 4096(%rax,%rcx,4), %ymm12, %ymm13",
        "{vex} vpdpwssds %xmm1, %xmm2, %xmm3",
    ]
    start = ".globl dots\n.type dots, @function\ndots:\n"
    ends = " ret\n.size dots, .-dots\n"
    found = machine_code(linked(tmp_path, start + "\n".join(dots) + "\n" + ends))
    assert (found.instructions, found.found) == (4, ())
    with pytest.raises(FileFormatError, match=r"in dots at 0x[0-9a-f]+ the bytes 06 07"):
        machine_code(linked(tmp_path, start + " .byte 0x06, 0x07, 0x06\n" + ends))


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_code_under_no_symbol_is_searched_too(tmp_path):
    start = ".globl f\n.type f, @function\nf: ret\n.size f, .-f\n"
    found = machine_code(linked(tmp_path, start + " nop\n" * 80 + " vaddps %ymm0, %ymm1, %ymm2\n"))
    assert [item.function for item in found.found] == [".text"]


def test_files_that_are_no_library(tmp_path):
    (tmp_path / "x.so").write_bytes(b"\x7fELF" + bytes(np.arange(60, dtype=np.uint8)))
    with pytest.raises(FileFormatError, match=r"x.so is no ELF library"):
        machine_code(tmp_path / "x.so")
    with pytest.raises(FileFormatError, match=r"absent.so is no ELF library: .*No such file"):
        machine_code(tmp_path / "absent.so")


BRANCH, RETURN = bytes.fromhex("00040014"), bytes.fromhex("c0035fd6")
"""Of aarch64: `b` to 0x1000 bytes on, and `ret`."""


@pytest.mark.parametrize(
    ("name", "between", "reached"),
    [
        (".text", "e843419@0005_00000039_abbec", False),
        (".text", "something_else", True),
        ("something_else", "e843419@0005_00000039_abbec", True),
    ],
)
def test_a_jump_over_the_stubs_of_a_linker_calls_nothing(name, between, reached):
    functions = [
        code.Function(name, 0x2000, BRANCH),
        code.Function(between, 0x2008, RETURN),
        code.Function("__truncsfhf2", 0x3000, RETURN),
    ]
    machine = code._machine("EM_AARCH64", Path("library"))
    for function in functions:
        code._disassemble(function, machine, Path("library"))
    assert (0x3000 in code._reached(functions)) == reached
