"""Packaging of iqvit: every top folder installs under the one name `iqvit`."""

from setuptools import setup

FOLDERS = {
    "iqvit": "iqvit",
    "iqvit.models": "models",
    "iqvit.calibration": "calibration",
    "iqvit.tvm_backend": "tvm_backend",
    "iqvit.eval": "eval",
    "iqvit.training": "training",
}
SUBPACKAGES = {
    "iqvit.ops": "iqvit/ops",
    "iqvit.passes": "iqvit/passes",
    "iqvit.converters": "iqvit/converters",
    "iqvit.commands": "iqvit/commands",
    "iqvit.models.embedded": "models/embedded",
    "iqvit.models.rtdetr": "models/rtdetr",
    "iqvit.training.integers": "training/integers",
    "iqvit.models.multitask": "models/multitask",
    "iqvit.models.scenes": "models/scenes",
    "iqvit.tvm_backend.kernels": "tvm_backend/kernels",
}

setup(packages=[*FOLDERS, *SUBPACKAGES], package_dir={**FOLDERS, **SUBPACKAGES})
