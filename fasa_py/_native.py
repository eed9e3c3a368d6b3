"""The engine's C interface through cffi (ABI mode): declarations are read from the header itself.

``ffi`` and ``lib`` are the cffi objects; :func:`check` turns a status into an exception.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import cffi

from .errors import (
    CancelledError,
    ContextFullError,
    DeviceError,
    FasaError,
    FormatError,
    OutOfMemoryError,
    UnsupportedError,
)

_LIBRARY_NAME = {"win32": "fasa.dll", "darwin": "libfasa.dylib"}.get(sys.platform, "libfasa.so")


def library_path() -> Path:
    """``FASA_LIBRARY`` if set (for development and sanitizer builds), else the one installed in the package."""
    override = os.environ.get("FASA_LIBRARY")
    return Path(override) if override else Path(__file__).with_name(_LIBRARY_NAME)


def _declarations() -> str:
    """The part of ``fasa.h`` between the cdef marks."""
    installed = Path(__file__).with_name("fasa.h")
    source = installed if installed.exists() else Path(__file__).parents[1] / "native" / "include" / "fasa.h"
    header = source.read_text(encoding="utf-8")
    match = re.search(r"/\* cdef begin \*/(.*)/\* cdef end \*/", header, re.DOTALL)
    if match is None:
        raise ImportError(f"{source}: the cdef marks are missing")
    return match.group(1).replace("FASA_API ", "")


def _load() -> tuple[Any, Any]:
    path = library_path()
    ffi = cffi.FFI()
    ffi.cdef(_declarations())
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(f"cannot load the fasa engine {path}: {error}. Reinstall fasa_py (pip install .)") from error
    if lib.fasa_abi_version() != lib.FASA_ABI_VERSION:
        raise ImportError(
            f"{path} has ABI version {lib.fasa_abi_version()}, this package needs {lib.FASA_ABI_VERSION}: "
            "reinstall fasa_py"
        )
    return ffi, lib


ffi, lib = _load()

_EXCEPTIONS: dict[int, type[Exception]] = {
    lib.FASA_ERROR: FasaError,
    lib.FASA_ERROR_ARGUMENT: ValueError,
    lib.FASA_ERROR_IO: OSError,
    lib.FASA_ERROR_FORMAT: FormatError,
    lib.FASA_ERROR_UNSUPPORTED: UnsupportedError,
    lib.FASA_ERROR_MEMORY: OutOfMemoryError,
    lib.FASA_ERROR_DEVICE: DeviceError,
    lib.FASA_ERROR_CONTEXT_FULL: ContextFullError,
    lib.FASA_ERROR_CANCELLED: CancelledError,
}


def text(pointer: object) -> str:
    """A borrowed C string as ``str``."""
    return ffi.string(pointer).decode("utf-8", "replace")


def check(status: int) -> None:
    """Raise the exception of a failed status, with the engine's text; do nothing for ``FASA_OK``."""
    if status != 0:
        raise _EXCEPTIONS.get(status, FasaError)(text(lib.fasa_error_message()))
