"""The native tests, one by one. ``FASA_NATIVE_TESTS`` is the path of the executable (``cmake -DFASA_TESTS=ON``)."""

from __future__ import annotations

import os
import subprocess

import pytest

EXECUTABLE = os.environ.get("FASA_NATIVE_TESTS")


def names() -> list[str]:
    if EXECUTABLE is None:
        return []
    return subprocess.run([EXECUTABLE, "--list"], check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(EXECUTABLE is None, reason="FASA_NATIVE_TESTS does not name the native test executable")
@pytest.mark.parametrize("name", names())
def test_native(name: str) -> None:
    assert EXECUTABLE is not None
    done = subprocess.run([EXECUTABLE, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
