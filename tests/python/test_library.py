"""The C interface of the library and of GGUF files: arguments that no caller should pass, and what was built."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gguf_maker as make
import numpy as np
import pytest

from fasa_py._native import check, ffi, lib, text
from fasa_py.errors import UnsupportedError

PRINT_BUILD_INFO = """
from fasa_py._native import ffi, lib, text
info = ffi.new("fasa_build_info *")
lib.fasa_build_info_get(info)
print(text(info.cpu_isa), "|", text(info.cpu_isa_reason), "|", text(info.cpu_isa_built), "|", text(info.cpu_name), "|",
      info.n_cores)
"""


def build_info(fasa_cpu: str) -> list[str]:
    """Instruction set, reason, what was built, processor and cores, of a process with this FASA_CPU."""
    environment = {**os.environ, "FASA_CPU": fasa_cpu}
    done = subprocess.run([sys.executable, "-c", PRINT_BUILD_INFO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [part.strip() for part in done.stdout.split("|")]


def test_build_info() -> None:
    info = ffi.new("fasa_build_info *")
    lib.fasa_build_info_get(info)
    assert text(info.version).count(".") == 2
    assert text(info.compiler).split()[0] in ("gcc", "clang")
    assert info.n_cores >= 1
    assert info.memory_available > 0
    assert text(info.cuda_reason)


def test_an_instruction_set_can_be_forced() -> None:
    detected, reason, *rest = build_info("")
    assert reason == "detected"
    assert detected in rest[0].split(", ")
    assert build_info("scalar") == ["scalar", "FASA_CPU=scalar", *rest]


def test_an_unknown_instruction_set_is_refused() -> None:
    isa, reason, *rest = build_info("mmx")
    assert rest == build_info("")[2:]
    assert isa == "none"
    assert "FASA_CPU=mmx" in reason
    assert "scalar" in reason


def test_supported_lists() -> None:
    assert text(lib.fasa_supported_archs()).split(", ") == ["llama", "qwen2", "qwen3"]
    names = text(lib.fasa_supported_dtypes()).split(", ")
    assert len(names) == len(set(names)) == len(make.BLOCKS)


META, TENSOR, NUMBER = ffi.new("fasa_meta *"), ffi.new("fasa_tensor *"), ffi.new("float *")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("out", lambda: lib.fasa_gguf_open(ffi.NULL, b"x")),
        ("path", lambda: lib.fasa_gguf_open(ffi.new("fasa_gguf **"), ffi.NULL)),
        ("file", lambda: lib.fasa_gguf_meta(META, ffi.NULL, 0)),
        ("file", lambda: lib.fasa_gguf_tensor(TENSOR, ffi.NULL, 0)),
        ("out", lambda: lib.fasa_dequantize(ffi.NULL, lib.FASA_DTYPE_F32, b"1234", 4, 1)),
        ("data", lambda: lib.fasa_dequantize(NUMBER, lib.FASA_DTYPE_F32, ffi.NULL, 4, 1)),
    ],
)
def test_null_arguments(name: str, call: Callable[[], int]) -> None:
    with pytest.raises(ValueError, match=f"{name} is NULL"):
        check(call())


def test_indices_outside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(make.Maker().build())
    out = ffi.new("fasa_gguf **")
    check(lib.fasa_gguf_open(out, bytes(path)))
    file = ffi.gc(out[0], lib.fasa_gguf_free)
    with pytest.raises(ValueError, match="metadata entry 0 asked of a file that has 0"):
        check(lib.fasa_gguf_meta(META, file, 0))
    with pytest.raises(ValueError, match="tensor 18446744073709551615 asked of a file that has 0"):
        check(lib.fasa_gguf_tensor(TENSOR, file, 2**64 - 1))


@pytest.mark.parametrize(("n_bytes", "n"), [(34, 31), (34, 64), (33, 32), (68, 32), (0, 2**64 - 32), (34, 2**63)])
def test_dequantize_checks_sizes(n_bytes: int, n: int) -> None:
    out = np.empty(64, np.float32)
    with pytest.raises(ValueError, match=f"{n_bytes} bytes do not hold {n} Q8_0 values"):
        check(lib.fasa_dequantize(ffi.from_buffer("float *", out), lib.FASA_DTYPE_Q8_0, bytes(68), n_bytes, n))


def test_dequantize_refuses_other_types() -> None:
    with pytest.raises(UnsupportedError, match="number 16 is not supported"):
        check(lib.fasa_dequantize(NUMBER, 16, b"", 0, 0))


def test_errors_belong_to_their_thread() -> None:
    def fail(path: bytes) -> None:
        assert lib.fasa_gguf_open(ffi.new("fasa_gguf **"), path) == lib.FASA_ERROR_IO

    fail(b"/missing/here")
    other = threading.Thread(target=fail, args=(b"/missing/there",))
    other.start()
    other.join()
    assert "/missing/here" in text(lib.fasa_error_message())
