"""Reading GGUF files: metadata, tensor table and tensor data, all checked by the engine's reader.

Source: the GGUF specification (``docs/gguf.md`` of the ggml repository), versions 2 and 3, split sets included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ._native import check, ffi, lib, text

# Metadata numbers: GGUF value type -> numpy type, little-endian.
_NUMPY_TYPES = {
    lib.FASA_META_U8: "<u1",
    lib.FASA_META_I8: "<i1",
    lib.FASA_META_U16: "<u2",
    lib.FASA_META_I16: "<i2",
    lib.FASA_META_U32: "<u4",
    lib.FASA_META_I32: "<i4",
    lib.FASA_META_F32: "<f4",
    lib.FASA_META_BOOL: "?",
    lib.FASA_META_U64: "<u8",
    lib.FASA_META_I64: "<i8",
    lib.FASA_META_F64: "<f8",
}

Value = int | float | bool | str | bytes | list[str | bytes] | np.ndarray


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file."""

    name: str
    dtype: str  # "Q4_K"
    shape: tuple[int, ...]  # numpy order: the last one is contiguous, the reverse of the file's
    n_bytes: int
    offset: int  # of the data, bytes from the start of its file
    file: int  # which file of a split set, from 0


def path_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file name for the engine, which ends it at the first zero byte.

    :raises ValueError: it has one
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"a file name cannot hold a zero byte: {os.fspath(path)!r}")
    return encoded


def _text(data: bytes) -> str | bytes:
    """Text of a metadata string; the bytes themselves when they are not valid UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _strings(data: bytes, offsets: list[int]) -> list[str | bytes]:
    """The strings whose bytes lie concatenated in ``data``; ``offsets`` has one more entry than there are strings."""
    pieces = [data[start:end] for start, end in pairwise(offsets)]
    try:
        return [piece.decode("utf-8") for piece in pieces]
    except UnicodeDecodeError:
        return [_text(piece) for piece in pieces]


class _File:
    """The engine's handle until closed. Views of tensor data keep the mapping alive on their own."""

    def __init__(self, path: str) -> None:
        out = ffi.new("fasa_gguf **")
        check(lib.fasa_gguf_open(out, path_bytes(path)))
        self.path = path
        self._handle: Any = ffi.gc(out[0], lib.fasa_gguf_free)

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._handle

    def close(self) -> None:
        self._handle = None

    def meta(self, i: int) -> Any:
        """Entry ``i`` as ``fasa_meta``."""
        out = ffi.new("fasa_meta *")
        check(lib.fasa_gguf_meta(out, self.handle, i))
        return out

    def tensor(self, i: int) -> Any:
        """Tensor ``i`` as ``fasa_tensor``."""
        out = ffi.new("fasa_tensor *")
        check(lib.fasa_gguf_tensor(out, self.handle, i))
        return out


class _Metadata(Mapping[str, Value]):
    """Key -> value in file order, decoded on first use."""

    def __init__(self, file: _File, n: int) -> None:
        self._file = file
        self._values: dict[str, Value] = {}
        self._index: dict[str, int] = {text(file.meta(i).key): i for i in range(n)}

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            self._values[key] = self._decode(self._file.meta(self._index[key]))
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    @staticmethod
    def _decode(meta: Any) -> Value:
        is_array = meta.type == lib.FASA_META_ARRAY
        if meta.elem_type == lib.FASA_META_STRING:
            offsets = np.frombuffer(ffi.buffer(meta.offsets, 8 * (meta.n + 1)), "<u8").tolist()
            data = bytes(ffi.buffer(meta.data, offsets[-1]))
            return _strings(data, offsets) if is_array else _text(data)
        dtype = np.dtype(_NUMPY_TYPES[meta.elem_type])
        values = np.frombuffer(ffi.buffer(meta.data, meta.n * dtype.itemsize), dtype)
        return values.copy() if is_array else values[0].item()


class GGUF:
    """An open GGUF file, or all files of a split set (any file of it opens the whole set).

    ``metadata`` maps each key to an ``int``, ``float``, ``bool`` or ``str``, or, for arrays, to a list of ``str`` or a
    numpy array of the stored type. Strings that are not valid UTF-8 are given as ``bytes``. Values are decoded when
    first asked for. ``tensors`` lists every :class:`TensorInfo` in file order.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        The file, or another one of its set, cannot be opened.
    FormatError
        The file is damaged or not GGUF; the text names the file and the place.
    UnsupportedError
        GGUF version, byte order, or a tensor type that this build does not implement.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = _File(self.path)
        self._info = ffi.new("fasa_gguf_info *")
        lib.fasa_gguf_info_get(self._info, self._handle)
        self.metadata: Mapping[str, Value] = _Metadata(self._file, self._info.n_meta)
        found = [self._file.tensor(i) for i in range(self._info.n_tensors)]
        self.tensors = [_tensor_info(tensor) for tensor in found]
        self._tensors = {info.name: tensor for info, tensor in zip(self.tensors, found, strict=True)}

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. It stays mapped for models loaded from it and views of its data until they are gone."""
        self._file.close()

    @property
    def _handle(self) -> Any:
        """The engine's ``fasa_gguf *``; raises ValueError once closed."""
        return self._file.handle

    @property
    def version(self) -> int:
        """2 or 3."""
        return self._info.version

    @property
    def alignment(self) -> int:
        """Of the tensor data, bytes."""
        return self._info.alignment

    @property
    def n_files(self) -> int:
        """Files of the split set; 1 for a single file."""
        return self._info.n_files

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return self._info.n_bytes

    def tensor_data(self, name: str) -> memoryview:
        """The bytes of a tensor as they lie in the file: read-only, not copied. KeyError when there is none."""
        tensor, handle = self._tensors[name], self._handle
        # The destructor does nothing but hold the handle, so that the mapping outlives the view.
        data = ffi.gc(tensor.data, lambda _, handle=handle: None)
        return memoryview(ffi.buffer(data, tensor.n_bytes)).toreadonly()

    def dequantize(self, name: str) -> np.ndarray:
        """A tensor of any supported type as float32, in its numpy shape. KeyError when there is none."""
        tensor, data = self._tensors[name], ffi.from_buffer(self.tensor_data(name))
        out = np.empty(_tensor_info(tensor).shape, np.float32)
        check(lib.fasa_dequantize(ffi.from_buffer("float *", out), tensor.dtype, data, tensor.n_bytes, out.size))
        return out


def _tensor_info(tensor: Any) -> TensorInfo:
    shape = tuple(tensor.dims[i] for i in reversed(range(tensor.n_dims)))
    return TensorInfo(text(tensor.name), text(tensor.dtype_name), shape, tensor.n_bytes, tensor.offset, tensor.file)
