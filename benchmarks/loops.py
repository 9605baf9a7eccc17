"""The inner loops of a compiled program's kernels: how many vector instructions they have.

    python benchmarks/loops.py artifact/ --kernels row_gemm_0,row_gemm_rectified_0

A core takes a few vector instructions a cycle, so what they are bounds a kernel's share of the
peak: `products` are dot products (all that the peak counts), `other` everything else that occupies
a vector unit. Loads and stores, and copies of registers, are in neither; a masked one is. A loop
that rescales results takes one row of four vectors a turn, alone or among products. For x86
libraries.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from iqvit.cli import guarded
from iqvit.commands import screen
from iqvit.errors import TargetError
from iqvit.tvm_backend.machine_code import functions_of

BODY = re.compile(r"(\w+)_compute_")
JUMP = re.compile(r"j\w+")
LEAST = 12
"""Vector instructions of a loop that is listed."""

Instruction = tuple[int, str, str]


def bodies(library: Path) -> dict[str, list[Instruction]]:
    """The instructions of every kernel: address, mnemonic, operands.

    The body of a parallel loop has no symbol and follows the function that starts it.
    """
    import capstone
    from elftools.elf.elffile import ELFFile

    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    with library.open("rb") as file:
        elf = ELFFile(file)
        if elf["e_machine"] != "EM_X86_64":
            raise TargetError(f"{library} is a library for {elf['e_machine']}, not for x86-64")
        functions = list(functions_of(elf))
    found: dict[str, list[Instruction]] = {}
    kernel = None
    for function in functions:
        named = BODY.fullmatch(function.name)
        kernel = named[1] if named else kernel if function.name.startswith(".") else None
        if kernel is not None:
            listed = disassembler.disasm_lite(function.code, function.address)
            here = found.setdefault(kernel, [])
            here.extend((place, mnemonic, rest) for place, _, mnemonic, rest in listed)
    return found


def loops(body: list[Instruction]) -> Iterator[list[Instruction]]:
    """What lies between an instruction and the jump back to it, where no other loop lies inside."""
    places = {place: i for i, (place, _, _) in enumerate(body)}
    spans = [
        (places[int(rest, 16)], i)
        for i, (_, mnemonic, rest) in enumerate(body)
        if JUMP.fullmatch(mnemonic) and rest.startswith("0x") and places.get(int(rest, 16), i) < i
    ]
    for first, last in spans:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            yield body[first : last + 1]


def counts(loop: list[Instruction]) -> tuple[int, int, int]:
    """Instructions in all, dot products, and what else occupies a vector unit."""
    kinds = Counter(kind_of(mnemonic, rest) for _, mnemonic, rest in loop)
    return len(loop), kinds["product"], kinds["other"]


def kind_of(mnemonic: str, operands: str) -> str:
    """`product`, `other` (another vector instruction) or `` (loads, stores, copies, scalars)."""
    if mnemonic == "vpdpbusd":
        return "product"
    copies = mnemonic.startswith(("vmov", "vpbroadcast", "vbroadcast"))
    if not mnemonic.startswith("v") or (copies and "{k" not in operands):
        return ""
    return "other"


def list_loops(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")],
    kernels: Annotated[
        str, typer.Option(metavar="NAME,...", help="As `iqvit bench --profile` names them; or all.")
    ] = "",
) -> None:
    """Lists the inner loops with the instructions of a turn."""
    library = artifact / "model.so"
    if not library.is_file():
        raise TargetError(f"no library {library}: ARTIFACT is a folder that `iqvit compile` wrote")
    found = bodies(library)
    unknown = [name for name in kernels.split(",") if name and name not in found]
    if unknown:
        raise TargetError(f"no kernel {unknown[0]}; {library} has {', '.join(sorted(found))}")
    rows = [
        (name, *counted)
        for name in (kernels.split(",") if kernels else sorted(found))
        for counted in map(counts, loops(found[name]))
        if counted[1] + counted[2] >= LEAST
    ]
    screen.table(("kernel", "instructions", "products", "other"), rows)


if __name__ == "__main__":
    typer.run(guarded(list_loops))
