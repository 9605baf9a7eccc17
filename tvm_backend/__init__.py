"""`iqvit.tvm_backend`: an IntGraph as a TVM library. Nothing heavy loads before it is used."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if __name__ != "iqvit.tvm_backend":
    raise ImportError(
        "this folder installs as iqvit.tvm_backend; write `from iqvit.tvm_backend import ...`"
    )

if TYPE_CHECKING:
    from iqvit.tvm_backend.compile import compile
    from iqvit.tvm_backend.lower import lower
    from iqvit.tvm_backend.runtime import load

__all__ = ["compile", "load", "lower"]
_MODULES = {"compile": "compile", "load": "runtime", "lower": "lower"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


class _Package(ModuleType):
    """Keeps `compile` and `lower` the functions: an import of the modules of these names would
    otherwise put the modules in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
