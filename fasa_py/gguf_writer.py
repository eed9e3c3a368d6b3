"""Writing a copy of a GGUF file with other metadata: everything that is not replaced stays byte for byte.

Source: the GGUF specification (``docs/gguf.md`` of the ggml repository). The file is checked by the engine's reader
first; here it is only cut into its parts.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import FormatError, UnsupportedError
from .gguf import GGUF

_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9  # GGUF value types
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number
_NUMPY_TYPES = {"uint16": 2, "uint32": 4, "float32": 6}
_CHUNK = 1 << 22  # bytes copied at once


class _Head:
    """The part of a file before its tensor data, cut into spans."""

    def __init__(self, file: BinaryIO, n_meta: int, n_tensors: int) -> None:
        self._file = file
        self._take(24)  # magic, version, both counts
        self.entries: list[tuple[bytes, bytes]] = []  # key, and the whole entry with its key
        for _ in range(n_meta):
            start = file.tell()
            key = self._string()
            self._skip_value(self._number("<I"))
            self.entries.append((key, self._between(start)))
        start = file.tell()
        for _ in range(n_tensors):
            self._string()
            self._take(8 * self._number("<I") + 12)  # dims, type, offset
        self.tensor_table = self._between(start)
        self.n_bytes = file.tell()

    def _take(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise FormatError(f"{self._file.name}: the file ends at byte {self._file.tell()}: it changed while read")
        return data

    def _between(self, start: int) -> bytes:
        end = self._file.tell()
        self._file.seek(start)
        return self._take(end - start)

    def _number(self, format: str) -> int:
        return int(struct.unpack(format, self._take(struct.calcsize(format)))[0])

    def _string(self) -> bytes:
        return self._take(self._number("<Q"))

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            kind, n = self._number("<I"), self._number("<Q")
            if kind == _STRING:
                for _ in range(n):
                    self._string()
            else:
                self._file.seek(_SIZES[kind] * n, os.SEEK_CUR)
        else:
            self._file.seek(_SIZES[kind], os.SEEK_CUR)


def _packed_string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, value: Any) -> bytes:
    """A metadata entry: int as u32, str as string, arrays of uint16, uint32 and float32 as arrays."""
    head = _packed_string(key.encode())
    if isinstance(value, str):
        return head + struct.pack("<I", _STRING) + _packed_string(value.encode())
    if isinstance(value, np.ndarray):
        kind = _NUMPY_TYPES[value.dtype.name]
        packed = value.astype(value.dtype.newbyteorder("<")).tobytes()
        return head + struct.pack("<IIQ", _ARRAY, kind, value.size) + packed
    return head + struct.pack("<II", _U32, value)


def check_copy(source: str | os.PathLike[str], target: str | os.PathLike[str], force: bool = False) -> None:
    """Raise what :func:`copy_with_metadata` would raise before it writes: for callers whose values take long to make.

    The copy is taken to be as large as the source: what the values add is known, and checked, only when it is written.

    :raises: as :func:`copy_with_metadata`
    """
    target = Path(target)
    with GGUF(source) as gguf:
        _check_copy(gguf, target, force)
        _check_space(target, gguf.n_bytes)


def _check_copy(gguf: GGUF, target: Path, force: bool) -> None:
    if gguf.n_files > 1:
        raise UnsupportedError(
            f"{gguf.path}: the model is split into {gguf.n_files} files: merge them first "
            "(llama-gguf-split --merge FIRST OUT)"
        )
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "the file exists; force replaces it", str(target))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder cannot be replaced by a file", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))


def _check_space(target: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if n_bytes > free:
        raise OSError(
            errno.ENOSPC, f"the disk has {free / 2**20:.0f} MiB left, {n_bytes / 2**20:.0f} are needed", str(target)
        )


def copy_with_metadata(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    prefix: str,
    values: Mapping[str, Any],
    force: bool = False,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a copy of a GGUF file in which the keys that start with ``prefix`` are replaced by ``values``.

    All other metadata and the tensor data are the same bytes. The target appears only when it is complete.

    :param values: key -> int (written as u32), str, or numpy array of uint16, uint32 or float32
    :param force: replace a file that exists
    :param progress: called with the fraction written; an exception in it leaves nothing behind
    :raises FileExistsError: the target exists, and force is not given
    :raises UnsupportedError: the source is one of a split set
    :raises OSError: a file cannot be read or written, or the disk is too full
    """
    source, target = Path(source), Path(target)
    with GGUF(source) as gguf, source.open("rb") as file:
        _check_copy(gguf, target, force)
        head = _Head(file, len(gguf.metadata), len(gguf.tensors))
        kept = [entry for key, entry in head.entries if not key.startswith(prefix.encode())]
        entries = kept + [_entry(key, value) for key, value in values.items()]
        new_head = b"".join(
            (b"GGUF", struct.pack("<IQQ", gguf.version, len(gguf.tensors), len(entries)), *entries, head.tensor_table)
        )
        new_head += b"\0" * (-len(new_head) % gguf.alignment)
        file.seek(min(head.n_bytes + -head.n_bytes % gguf.alignment, os.path.getsize(source)))
        _write(file, new_head, target, progress)


def _write(file: BinaryIO, head: bytes, target: Path, progress: Callable[[float], None] | None) -> None:
    """The head, then the rest of the source, under another name until all of it is there."""
    n_bytes = len(head) + os.fstat(file.fileno()).st_size - file.tell()
    _check_space(target, n_bytes)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as out:
            out.write(head)
            while data := file.read(_CHUNK):
                out.write(data)
                if progress is not None:
                    progress(min(1.0, out.tell() / n_bytes))
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
