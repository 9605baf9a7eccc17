"""Which instructions of x86-64 and aarch64 compute on floats, by their names.

The names are those that capstone gives. An instruction that only moves, selects or combines bits
is no float operation, although compilers use the names of the float forms for it (`vmovaps`,
`vbroadcastss`, `vxorps`): the bits come out as they went in.
"""

import re
from typing import Any

# Names without the leading v of the AVX forms.
_X86_MOVES = re.compile(
    r"mov(a|u|l|h|lh|hl|nt|msk)?p[sd]|movs[sdh]|movs[lh]dup|movddup|broadcasts[sd]"
    r"|shufp[sd]|testp[sd]|unpck[lh]p[sd]|(and|andn|or|xor)p[sd]|blendm?v?p[sd]|insertps|extractps"
    r"|maskmovp[sd]|(gather|scatter)[dq]p[sd]|(expand|compress)p[sd]"
)
_X86_FLOAT = re.compile(r".*(p[sdh]|s[sdh]|bf16|bf16s)")
_X86_CONTROL = ("ldmxcsr", "stmxcsr")
_X86_VECTOR = re.compile(r"[xyz]mm\d|tmm\d")

_ARM_BRAIN = re.compile(r"bf(dot|mmla|mlal[bt]?|cvtn?2?|cvtnt|mops|mopa|add|sub|mul|max|min)\w*")
"""bfloat16; `bfi`, `bfm`, `bfc` and `bfxil` move fields of bits."""
_ARM_CONVERSION = re.compile(r"[su]cvtf")


def is_float_x86(mnemonic: str, operands: str) -> bool:
    """Whether an x86-64 instruction computes on floats: x87, SSE, AVX, AVX-512, AMX."""
    name = mnemonic.rsplit(maxsplit=1)[-1]  # after prefixes such as rep
    if name in _X86_CONTROL or name.startswith("f"):  # x87: nothing else begins with f
        return True
    if not _X86_VECTOR.search(operands):  # string operations are named alike: movsd, cmpsd
        return name.startswith("pf")  # 3DNow!, in MMX registers
    plain = name.removeprefix("v")
    if plain.startswith("cvt") or plain.startswith(("fm", "fnm", "fixup", "fpclass", "4fm")):
        return True
    if plain.startswith(("p", "tdpb")) and "bf16" not in plain:
        return plain.startswith("pf")  # p..: packed integers, and permutations of any type
    return bool(_X86_FLOAT.fullmatch(plain)) and not _X86_MOVES.fullmatch(plain)


def is_float_arm(mnemonic: str, operands: str) -> bool:
    """Whether an aarch64 instruction computes on floats; `fmov` moves bits and so does not."""
    del operands
    if mnemonic.startswith("f"):  # nothing else begins with f
        return mnemonic != "fmov"
    return bool(_ARM_BRAIN.fullmatch(mnemonic) or _ARM_CONVERSION.fullmatch(mnemonic))


def known_form(disassembler: Any, code: bytes, machine: str) -> int:
    """Bytes of an integer instruction that capstone does not know; 0 where there is none.

    Capstone 5 lacks the VEX forms of the 8- and 16-bit dot products (AVX-VNNI: VPDPBUSD,
    VPDPBUSDS, VPDPWSSD, VPDPWSSDS). They take the operands of VPMADDUBSW, so are as long.
    """
    if machine != "x86_64" or len(code) < 5 or code[0] != 0xC4:
        return 0
    dot = code[1] & 0x1F == 0x02 and code[2] & 0x83 == 0x01 and 0x50 <= code[3] <= 0x53
    if not dot:
        return 0
    like = bytes((*code[:3], 0x04, *code[4:]))
    return next((size for _, size, name, _ in disassembler.disasm_lite(like, 0, 1)), 0)
