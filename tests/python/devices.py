"""The devices that tests run on; conftest.py has the fixture."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from tiny_models import TinyModel, write

import fasa_py
from fasa_py.model import Model, build_info

ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ("cpu", ON_GPU)
each_device = pytest.mark.usefixtures("device")  # for a test that loads a model by itself


@cache
def without_gpu() -> str | None:
    """Why no test can run on a GPU; None: they can."""
    build = build_info()
    if not build.cuda:
        return f"the library has no CUDA backend ({build.cuda_reason})"
    with tempfile.TemporaryDirectory() as folder, fasa_py.GGUF(write(Path(folder) / "tiny.gguf", TinyModel())) as gguf:
        try:
            Model(gguf, "cuda")
        except fasa_py.DeviceError as error:
            if "no GPU" in str(error):
                return str(error)
    return None
