"""Constants that a library holds as plain bytes, instead of in TVM's executable.

TVM copies an executable's constants while it loads them. These are views of the library's own
pages: read from the file when first used, and shared by all processes that run it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tvm.relax
from tvm_ffi import libinfo

relax: Any = tvm.relax  # its arguments are typed as expressions; it takes integers

FUNCTION = "iqvit_weight"
LEAST_BYTES = 1 << 10
"""What is smaller stays in the executable: the call for it would cost more than it saves."""
ALIGNMENT = 64
OPTIONS = ["-O2", f"-I{libinfo.find_include_path()}", f"-I{libinfo.find_dlpack_include_path()}"]
"""What a compiler needs to compile the source that `Weights.write` writes."""

_CODES = {"i": "kDLInt", "u": "kDLUInt"}
_SOURCE = """\
#include <tvm/ffi/c_api.h>

__asm__(
    ".pushsection .rodata\\n"
    ".balign {alignment}\\n"
    ".hidden iqvit_bytes\\n"
    ".globl iqvit_bytes\\n"
    "iqvit_bytes: .incbin \\"{data}\\"\\n"
    ".popsection\\n");

extern "C" {{

extern char iqvit_bytes[] __attribute__((visibility("hidden")));

static int64_t shapes[] = {{{shapes}}};

static DLManagedTensor tensors[] = {{
{tensors}
}};

/* The number of a tensor -> a view of it; called as TVM calls functions. */
int __tvm_ffi_{function}(void *, const TVMFFIAny *arguments, int32_t, TVMFFIAny *result) {{
  result->type_index = kTVMFFITensor;
  return TVMFFITensorFromDLPack(tensors + arguments[0].v_int64, {alignment}, 1,
                                (TVMFFIObjectHandle *)&result->v_obj);
}}

}}
"""


class Weights:
    """The constants of one library that are kept outside of its executable."""

    def __init__(self) -> None:
        """None so far."""
        self.arrays: list[np.ndarray] = []

    def constant(self, value: np.ndarray) -> Any:
        """The Relax expression of an array in a library that `write`'s source is linked into."""
        if value.nbytes < LEAST_BYTES:
            return constant(value)
        self.arrays.append(value)
        kind = relax.TensorType(value.shape, str(value.dtype))
        return relax.call_pure_packed(FUNCTION, len(self.arrays) - 1, ty_args=kind)

    def write(self, folder: Path) -> Path:
        """Write the bytes and the C++ source of the function that gives views of them into
        `folder`; returns the source, which reads the bytes while it is compiled."""
        data, source = folder / "weights.bin", folder / "weights.cc"
        shapes: list[int] = []
        tensors: list[str] = []
        with data.open("wb") as file:
            for array in self.arrays:
                file.write(bytes(-file.tell() % ALIGNMENT))
                tensors.append(_tensor(array, file.tell(), len(shapes)))
                file.write(np.ascontiguousarray(array).tobytes())
                shapes.extend(array.shape)
        text = _SOURCE.format(
            alignment=ALIGNMENT,
            data=data,
            shapes=", ".join(map(str, shapes)),
            tensors="\n".join(tensors),
            function=FUNCTION,
        )
        source.write_text(text, encoding="utf-8")
        return source


def constant(value: np.ndarray) -> Any:
    """An array in the executable."""
    # Without the type given, int64 would become int32.
    return relax.const(value, str(value.dtype))


def _tensor(array: np.ndarray, begin: int, shape: int) -> str:
    """The initialiser of a DLManagedTensor without owner."""
    kind = f"{{{_CODES[array.dtype.kind]}, {8 * array.itemsize}, 1}}"
    where = f"iqvit_bytes + {begin}, {{kDLCPU, 0}}"
    return f"    {{{{{where}, {array.ndim}, {kind}, shapes + {shape}, 0, 0}}, 0, 0}},"
