import importlib
import subprocess
import sys

import pytest

import iqvit


def test_every_public_name_is_there():
    for name in iqvit.__all__:
        assert getattr(iqvit, name) is not None
    assert set(iqvit.__all__) <= set(dir(iqvit))


@pytest.mark.parametrize("name", ["canonicalize", "capture", "compare", "convert", "cost"])
def test_functions_stay_functions_when_their_modules_load(name):
    importlib.import_module(f"iqvit.{name}")
    assert callable(getattr(iqvit, name))
    assert getattr(iqvit, name).__name__ == name


def test_names_in_a_fresh_interpreter_in_either_order():
    code = (
        "import sys, iqvit\n"
        "assert 'torch' not in sys.modules\n"
        "import iqvit.capture, iqvit.calibration.quantize\n"
        "from iqvit import capture, convert, quantize\n"
        "assert all(map(callable, (capture, convert, quantize, iqvit.cost)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = iqvit.nothing
    assert iqvit.__version__
