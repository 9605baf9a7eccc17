"""The check that a linked library computes on integers only, made on its instructions.

Every function of the library is disassembled: the model's, TVM's wrappers around them and the C
start-up code. Moving integers through vector registers is no float operation: copies, broadcasts,
shuffles, blends and the bitwise operations count as what they are, whatever type their name
carries. Arithmetic, comparisons, conversions and roundings of floats count, and so does a call of
a function that is not known to be free of them.

Nothing is excluded. Floats computed by integer instructions (`SOFT_FLOAT`: TVM's code generator
puts two conversions of half precision into every library) count as soon as anything refers to them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqvit.errors import FileFormatError, GraphError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

SOFT_FLOAT = re.compile(
    r"__(add|sub|mul|div|neg|cmp|eq|ne|lt|le|gt|ge|unord|extend|trunc|fix|fixuns|float|floatun)"
    r"([hsdtx]f|[sdt]i)\w+|__gnu_(h2f|f2h)_ieee"
)
"""Compilers' names of functions that compute on floats without float instructions."""
CALLABLE = re.compile(
    r"TVMFFI\w+|__TVM\w+|TVMBackend\w+|__tvm_\w+|mem(cpy|set|move)"
    r"|__cxa_finalize|__gmon_start__|_ITM_\w+|__stack_chk_fail|abort"
)
"""Functions outside of the library that it may call: TVM's runtime, memory, start-up."""
MOST_PADDING = 63
"""Bytes between two functions that may be mere alignment."""
STUB = re.compile(r"e843419@|e835769@")
"""How ld names the stubs that mend the errata of the Cortex-A53."""
_ADDRESS = re.compile(r"(?:^|[ #])(0x[0-9a-f]+)$")
CODE = 0x4
"""The flag of ELF sections that hold instructions."""


@dataclass(frozen=True)
class FloatCode:
    """One float instruction, or one call out of the library that may compute on floats."""

    function: str
    address: int
    text: str

    def __str__(self) -> str:
        return f"{self.function} at {self.address:#x}: {self.text}"


@dataclass(frozen=True)
class MachineCode:
    """What was found in a library."""

    machine: str
    """`x86_64` or `aarch64`."""
    functions: int
    instructions: int
    found: tuple[FloatCode, ...]

    @property
    def summary(self) -> str:
        """One line for a report."""
        for found in self.found:
            return f"{found} ({len(self.found)} in all)"
        return f"none in {self.instructions} of {self.machine}, {self.functions} functions"


@dataclass(frozen=True)
class _Machine:
    """A disassembler, and what it takes for a float instruction."""

    name: str
    disassembler: Any
    is_float: Any
    step: int
    """Bytes to go on after something that is no instruction."""


@dataclass
class Function:
    """A function of a library, and what was found in it."""

    name: str
    address: int
    code: bytes
    instructions: int = 0
    found: list[FloatCode] = field(default_factory=list)
    jumps: set[tuple[int, int]] = field(default_factory=set)
    """From where its calls and jumps lead, and where to."""


def assert_no_float_code(library: str | os.PathLike[str]) -> MachineCode:
    """`machine_code` of a library without float instructions; `GraphError` for one that has some.

    The error names function and instruction. Raises as `machine_code`.
    """
    code = machine_code(library)
    if code.found:
        shown = "\n".join(f"  {found}" for found in code.found[:5])
        raise GraphError(
            f"float instructions in the machine code ({len(code.found)})\n{shown}\n"
            "  remedy      lower these operators to integer expressions only"
        )
    return code


def machine_code(library: str | os.PathLike[str]) -> MachineCode:
    """Disassemble every function of an ELF library for x86-64 or aarch64.

    Raises `FileFormatError` for a file that is no such library, or that holds bytes, as code, that
    are no instruction which the disassembler knows: of those nothing could be said.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    path = Path(library)
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine = _machine(str(elf["e_machine"]), path)
            functions = list(functions_of(elf))
            called = _relocated(elf)
            imported = _imported(elf)
    except (OSError, ELFError) as error:
        raise FileFormatError(f"{path} is no ELF library: {error}") from error
    for function in functions:
        _disassemble(function, machine, path)
    found = [item for function in functions for item in function.found]
    reached = _reached(functions)
    for function in functions:
        used = function.name in called or function.address in reached
        if used and SOFT_FLOAT.fullmatch(function.name):
            what = "computes on floats and is called"
            found.append(FloatCode(function.name, function.address, what))
    for name in imported:
        if not CALLABLE.fullmatch(name):
            what = "a call of a function that is not known to compute on integers only"
            found.append(FloatCode(name, 0, what))
    count = sum(function.instructions for function in functions)
    return MachineCode(machine.name, len(functions), count, tuple(found))


def _machine(name: str, path: Path) -> _Machine:
    import capstone

    from iqvit.tvm_backend.float_instructions import is_float_arm, is_float_x86

    if name == "EM_X86_64":
        disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        return _Machine("x86_64", disassembler, is_float_x86, 1)
    if name == "EM_AARCH64":
        disassembler = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        return _Machine("aarch64", disassembler, is_float_arm, 4)
    raise FileFormatError(f"{path} is a library for {name}; x86-64 and aarch64 can be checked")


def functions_of(elf: "ELFFile") -> Iterator[Function]:
    """Everything in the sections of code, cut where the symbols say that functions lie."""
    symbols = _symbols(elf)
    for number, section in enumerate(elf.iter_sections()):
        if not section["sh_flags"] & CODE or section["sh_type"] != "SHT_PROGBITS":
            continue
        begin, data = section["sh_addr"], section.data()
        relative = elf["e_type"] == "ET_REL"  # an object file, whose symbols count from here
        inside = {
            symbol["st_value"] + (begin if relative else 0): (symbol["st_size"], symbol.name)
            for symbol in symbols
            if symbol["st_shndx"] == number
        }
        yield from _cut(section.name, begin, data, inside)


def _symbols(elf: "ELFFile") -> list[Any]:
    from elftools.elf.sections import SymbolTableSection

    tables = [s for s in elf.iter_sections() if isinstance(s, SymbolTableSection)]
    # the dynamic table is a part of the full one, where there is a full one
    tables = [t for t in tables if t["sh_type"] == "SHT_SYMTAB"] or tables
    found = [symbol for table in tables for symbol in table.iter_symbols()]
    return [s for s in found if s["st_info"]["type"] == "STT_FUNC" and s.name]


def _cut(
    section: str, begin: int, data: bytes, symbols: dict[int, tuple[int, str]]
) -> Iterator[Function]:
    """The functions of a section; code under no symbol bears the section's name."""
    end = begin + len(data)
    at = begin
    ordered = sorted(symbols.items())
    for place, (address, (size, name)) in enumerate(ordered):
        following = ordered[place + 1][0] if place + 1 < len(ordered) else end
        if address - at > MOST_PADDING:
            yield Function(section, at, data[at - begin : address - begin])
        at = address + size if size else following
        yield Function(name, address, data[address - begin : at - begin])
    if end - at > MOST_PADDING or (not ordered and data):
        yield Function(section, at, data[at - begin :])


def _disassemble(function: Function, machine: _Machine, path: Path) -> None:
    from iqvit.tvm_backend.float_instructions import known_form

    data, at = function.code, 0
    while at < len(data):
        decoded = 0
        address = function.address + at
        for place, size, mnemonic, operands in machine.disassembler.disasm_lite(data[at:], address):
            function.instructions += 1
            decoded += size
            if machine.is_float(mnemonic, operands):
                text = f"{mnemonic} {operands}".strip()
                function.found.append(FloatCode(function.name, place, text))
            _follow(function, place, operands)
        at += decoded
        if at >= len(data):
            return
        length = known_form(machine.disassembler, data[at : at + 15], machine.name)
        if length == 0 and any(data[at:]):
            raise FileFormatError(
                f"{path}: in {function.name} at {function.address + at:#x} the bytes "
                f"{data[at : at + 8].hex(' ')} are no {machine.name} instruction that is known"
            )
        at += length or len(data) - at  # what is left is padding of zeros
        function.instructions += length > 0


def _follow(function: Function, place: int, operands: str) -> None:
    """Keep the address that a call or jump names."""
    target = _ADDRESS.search(operands)
    if target is not None:
        function.jumps.add((place, int(target[1], 16)))


def _reached(functions: list[Function]) -> set[int]:
    """Where calls and jumps lead.

    Where a linker puts stubs between two functions it begins with a jump over them, to whatever
    function comes next; nothing runs into that jump, and it is under no symbol.
    """
    stubs = [function.address for function in functions if STUB.match(function.name)]
    return {
        target
        for function in functions
        for place, target in function.jumps
        if not (function.name.startswith(".") and any(place < stub < target for stub in stubs))
    }


def _relocated(elf: "ELFFile") -> set[str]:
    """Names that the dynamic loader binds, by which a function's own library may call it too."""
    from elftools.elf.relocation import RelocationSection

    names: set[str] = set()
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection):
            continue
        table: Any = elf.get_section(section["sh_link"])
        for relocation in section.iter_relocations():
            names.add(table.get_symbol(relocation["r_info_sym"]).name)
    return names - {""}


def _imported(elf: "ELFFile") -> list[str]:
    """Names that the library takes from others."""
    from elftools.elf.sections import SymbolTableSection

    names = {
        symbol.name
        for section in elf.iter_sections()
        if isinstance(section, SymbolTableSection)
        for symbol in section.iter_symbols()
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name
    }
    return sorted(name.split("@")[0] for name in names)
