"""Queries, selections and keys of a context's decode steps, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._native import check, ffi, lib
from ..model import Context, ModelInfo


class TappedLayer(NamedTuple):
    """One layer of one recorded decode step."""

    seq: int
    n_pos: int  # cached positions, the current one included
    q: npt.NDArray[np.float32]  # rotated, (n_head, head_dim), dims as in the file
    positions: list[npt.NDArray[np.int32]]  # attended to, a list a set of heads; no lists: all of them


class Tap:
    """Records the next decode steps of a context, and stops when it is closed."""

    def __init__(self, context: Context, info: ModelInfo, n_steps: int) -> None:
        self._context, self._info = context, info
        check(lib.fasa_tap_start(context._handle, n_steps))

    @property
    def n_steps(self) -> int:
        """Steps recorded so far."""
        return lib.fasa_tap_steps(self._context._handle)

    def read(self, step: int, layer: int) -> TappedLayer:
        """:raises ValueError: no such step or layer"""
        return read_tapped(self._context, self._info, step, layer)

    def close(self) -> None:
        check(lib.fasa_tap_start(self._context._handle, 0))


def read_tapped(context: Context, info: ModelInfo, step: int, layer: int) -> TappedLayer:
    """What the context's tap recorded. :raises ValueError: no such step or layer"""
    seq, n_pos, n_set = (ffi.new("int32_t *") for _ in range(3))
    q = np.empty((info.n_head, info.head_dim), np.float32)
    count = np.zeros(info.n_head, np.int32)
    check(
        lib.fasa_tap_read(
            context._handle, step, layer, seq, n_pos, ffi.from_buffer("float[]", q), n_set,
            ffi.from_buffer("int32_t[]", count), ffi.NULL,
        )
    )  # fmt: skip
    packed = np.empty((n_set[0], n_pos[0]), np.int32)
    if n_set[0] > 0:
        pointer = ffi.from_buffer("int32_t[]", packed)
        check(lib.fasa_tap_read(context._handle, step, layer, seq, n_pos, ffi.NULL, n_set, ffi.NULL, pointer))
    return TappedLayer(seq[0], n_pos[0], q, [row[:n] for row, n in zip(packed, count, strict=False)])


def read_keys(context: Context, info: ModelInfo, seq: int, layer: int, head_kv: int, n: int) -> npt.NDArray[np.float32]:
    """Rotated keys of the first n positions, ``(n, head_dim)``, dims as in the file."""
    keys = np.empty((n, info.head_dim), np.float32)
    pointer = ffi.from_buffer("float[]", keys)
    check(lib.fasa_kv_read(pointer, ffi.NULL, context._handle, seq, layer, head_kv, 0, n))
    return keys
