"""A long KV cache for llama.cpp without the hours of filling it: the state of a short sequence, repeated.

What the cache holds changes neither the work of a decode step nor the bytes that it reads, so this serves for timing,
and for nothing else. The layout is that of llama.cpp's ``llama_state_seq_get_data``.
"""

from __future__ import annotations

import struct

import numpy as np

_HEADER = "<IIII"  # magic, version, streams, cells


def repeated(state: bytes, times: int) -> bytes:
    """The state of a sequence as if it were ``times`` as long, positions going on.

    :raises ValueError: the state has another layout than expected
    """
    magic, version, n_stream, n_cell = struct.unpack_from(_HEADER, state)
    at = struct.calcsize(_HEADER)
    cells = np.frombuffer(state, np.int32, 3 * n_cell, at).reshape(n_cell, 3)  # position, number of sequences, sequence
    if n_stream != 1 or not np.array_equal(cells[:, 0], np.arange(n_cell)):
        raise ValueError("the state is not that of one sequence from position 0 on")
    at += cells.nbytes
    all_cells = np.tile(cells, (times, 1))
    all_cells[:, 0] = np.arange(len(all_cells))
    v_transposed, n_layer = struct.unpack_from("<II", state, at)
    parts = [struct.pack(_HEADER, magic, version, n_stream, times * n_cell), all_cells.tobytes(), state[at : at + 8]]
    at += 8

    def take(n_bytes: int) -> bytes:
        nonlocal at
        at += n_bytes
        return state[at - n_bytes : at]

    def rows() -> None:  # type i32, bytes of a cell u64, then the cells
        header = take(12)
        parts.extend([header, take(n_cell * struct.unpack_from("<Q", header, 4)[0]) * times])

    def columns() -> None:  # type i32, bytes of a value u32, values of a cell u32, then the cells of each value
        header = take(12)
        n_bytes, n_value = struct.unpack_from("<II", header, 4)
        values = np.frombuffer(take(n_cell * n_bytes * n_value), np.uint8).reshape(n_value, n_cell * n_bytes)
        parts.extend([header, np.tile(values, (1, times)).tobytes()])

    for _ in range(n_layer):
        rows()
    for _ in range(n_layer):
        (columns if v_transposed else rows)()
    if at != len(state):
        raise ValueError(f"the state has {len(state)} bytes, {at} were expected")
    return b"".join(parts)
