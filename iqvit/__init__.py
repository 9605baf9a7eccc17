"""iqvit: the integer-only vision transformer compiler.

The stages from a float model to an integer program, each one function; `quantize` is all of them:

    capture -> canonicalize -> calibrate -> convert -> run, save, load, compare, cost, prove

Nothing heavy loads before it is used: `import iqvit` does not import torch. Several functions have
the name of the module that they live in; `iqvit.capture` is the function, and the module's other
names come from `from iqvit.capture import ...`. TVM is in `iqvit.tvm_backend`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqvit.calibrated import Calibrated
    from iqvit.calibration.calibrate import calibrate
    from iqvit.calibration.quantize import quantize
    from iqvit.calibration.recipe import Recipe, Rule, Settings, load_recipe
    from iqvit.canonical import CanonicalModel
    from iqvit.canonicalize import canonicalize
    from iqvit.capture import CapturedModel, capture
    from iqvit.compare import Comparison, compare
    from iqvit.convert import convert
    from iqvit.cost import Cost, cost
    from iqvit.errors import IqvitError
    from iqvit.heads import keep_head
    from iqvit.interpret import run
    from iqvit.intgraph import IntGraph
    from iqvit.serialize import load, save
    from iqvit.verify import Proof, prove

    __version__: str

_MODULES = {
    "Calibrated": "iqvit.calibrated",
    "CanonicalModel": "iqvit.canonical",
    "CapturedModel": "iqvit.capture",
    "Comparison": "iqvit.compare",
    "Cost": "iqvit.cost",
    "IntGraph": "iqvit.intgraph",
    "IqvitError": "iqvit.errors",
    "Proof": "iqvit.verify",
    "Recipe": "iqvit.calibration.recipe",
    "Rule": "iqvit.calibration.recipe",
    "Settings": "iqvit.calibration.recipe",
    "calibrate": "iqvit.calibration.calibrate",
    "canonicalize": "iqvit.canonicalize",
    "capture": "iqvit.capture",
    "compare": "iqvit.compare",
    "convert": "iqvit.convert",
    "cost": "iqvit.cost",
    "keep_head": "iqvit.heads",
    "load": "iqvit.serialize",
    "load_recipe": "iqvit.calibration.recipe",
    "prove": "iqvit.verify",
    "quantize": "iqvit.calibration.quantize",
    "run": "iqvit.interpret",
    "save": "iqvit.serialize",
}
__all__ = [
    "Calibrated",
    "CanonicalModel",
    "CapturedModel",
    "Comparison",
    "Cost",
    "IntGraph",
    "IqvitError",
    "Proof",
    "Recipe",
    "Rule",
    "Settings",
    "__version__",
    "calibrate",
    "canonicalize",
    "capture",
    "compare",
    "convert",
    "cost",
    "keep_head",
    "load",
    "load_recipe",
    "prove",
    "quantize",
    "run",
    "save",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("iqvit")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `capture`, `convert`... the functions: an import of the modules of these names would
    otherwise put the modules in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
