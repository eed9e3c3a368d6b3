"""Dequantisation of every supported type: the values of gguf-py, bit for bit, for arbitrary bytes."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from fasa_py._native import check, ffi, lib, text

N_BLOCKS = 3000


@pytest.mark.parametrize("dtype", text(lib.fasa_supported_dtypes()).split(", "))
def test_every_bit_pattern(dtype: str) -> None:
    qtype = GGMLQuantizationType[dtype]
    block, size = GGML_QUANT_SIZES[qtype]
    raw = np.random.default_rng(int(qtype)).integers(0, 256, N_BLOCKS * size, dtype=np.uint8)
    source = raw.view({"F32": np.float32, "F16": np.float16}.get(dtype, np.uint8))
    with np.errstate(all="ignore"):  # infinities and NaNs among the scales are wanted here
        expected = dequantize(source, qtype).astype(np.float32).ravel()

    found = np.empty(N_BLOCKS * block, np.float32)
    check(
        lib.fasa_dequantize(ffi.from_buffer("float *", found), int(qtype), ffi.from_buffer(raw), raw.nbytes, found.size)
    )

    numbers = ~np.isnan(expected)
    assert numbers.mean() > 0.5
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
