"""Writes GGUF files byte by byte, so that any part of them can be wrong.

Every field of :class:`Maker` and :class:`Tensor` that a well-formed file derives from others can be set by hand
instead. Independent of gguf-py and of the engine. Source: the GGUF specification (``docs/gguf.md`` of ggml).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}

# Tensor type number -> (values in a block, bytes of a block)
BLOCKS = {
    0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 20: (32, 18),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 23: (256, 136),
}  # fmt: skip


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(value: str | bytes, length: int | None = None) -> bytes:
    """Length, then the bytes. ``length`` overrides the true one."""
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data) if length is None else length) + data


def packed(kind: int, value: float | str | bytes) -> bytes:
    """One value without its type."""
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack("<" + _FORMATS[kind], value)


def scalar(kind: int, value: float | str | bytes) -> bytes:
    """Type and value, as they follow a key."""
    return u32(kind) + packed(kind, value)


def array(kind: int, values: Sequence[float | str | bytes], length: int | None = None) -> bytes:
    """An array with its types. ``length`` overrides the true one."""
    n = len(values) if length is None else length
    return u32(ARRAY) + u32(kind) + u64(n) + b"".join(packed(kind, value) for value in values)


def size(kind: int, dims: Sequence[int]) -> int:
    """Bytes of a tensor."""
    values = 1
    for dim in dims:
        values *= dim
    per_block, n_bytes = BLOCKS[kind]
    return values // per_block * n_bytes


@dataclass
class Tensor:
    name: str | bytes
    dims: Sequence[int]  # file order: the contiguous one first
    kind: int = 0
    data: bytes | None = None  # None: zeros
    n_dims: int | None = None
    offset: int | None = None
    raw_name: bytes | None = None  # with its length

    def bytes(self) -> bytes:
        return b"\0" * size(self.kind, self.dims) if self.data is None else self.data

    def info(self, offset: int) -> bytes:
        """The tensor's row of the table. ``offset``: where its data was put."""
        return (
            (string(self.name) if self.raw_name is None else self.raw_name)
            + u32(len(self.dims) if self.n_dims is None else self.n_dims)
            + b"".join(struct.pack("<q", dim) for dim in self.dims)
            + u32(self.kind)
            + u64(offset if self.offset is None else self.offset)
        )


@dataclass
class Maker:
    """A file. A key given as bytes holds its own length; values are from :func:`scalar` and :func:`array`."""

    metadata: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: bytes = u32(3)
    n_tensors: int | None = None
    n_metadata: int | None = None
    alignment: int = 32  # of the data as it is laid out

    def add(self, key: str | bytes, value: bytes) -> Maker:
        self.metadata.append((key, value))
        return self

    def add_tensor(self, tensor: Tensor) -> Maker:
        self.tensors.append(tensor)
        return self

    def _padding(self, length: int) -> bytes:
        return b"\0" * (-length % self.alignment)

    def build(self) -> bytes:
        table, data = b"", b""
        for tensor in self.tensors:
            data += self._padding(len(data))
            table += tensor.info(len(data))
            data += tensor.bytes()
        head = (
            self.magic
            + self.version
            + u64(len(self.tensors) if self.n_tensors is None else self.n_tensors)
            + u64(len(self.metadata) if self.n_metadata is None else self.n_metadata)
            + b"".join((string(key) if isinstance(key, str) else key) + value for key, value in self.metadata)
            + table
        )
        return head + self._padding(len(head)) + data if data else head


def small_model() -> Maker:
    """A well-formed file with a value of every metadata type and tensors of three types."""
    maker = Maker()
    maker.add("general.architecture", scalar(STRING, "llama"))
    maker.add("general.alignment", scalar(U32, 32))
    for kind, value in (
        (U8, 200),
        (I8, -100),
        (U16, 60000),
        (I16, -30000),
        (U32, 4_000_000_000),
        (I32, -2_000_000_000),
    ):
        maker.add(f"integer.{kind}", scalar(kind, value))
    maker.add("integer.u64", scalar(U64, 2**64 - 1)).add("integer.i64", scalar(I64, -(2**63)))
    maker.add("float.f32", scalar(F32, 0.5)).add("float.f64", scalar(F64, 0.1))
    maker.add("true", scalar(BOOL, 1)).add("false", scalar(BOOL, 0))
    maker.add("empty", scalar(STRING, "")).add("bytes", scalar(STRING, b"\xff\x00"))
    maker.add("strings", array(STRING, ["a", "", "\u20ac", b"\xff"])).add("no strings", array(STRING, []))
    for kind in _FORMATS:
        maker.add(f"array.{kind}", array(kind, [0, 1, 1]))
    maker.add_tensor(Tensor("token_embd.weight", (32, 3), 0, bytes(range(128)) * 3))
    maker.add_tensor(Tensor("half", (5,), 1, bytes(range(10))))
    maker.add_tensor(Tensor("quantised", (32, 2, 1, 2), 8))
    return maker
