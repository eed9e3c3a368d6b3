"""The engine's calibration over the decode steps that a context's tap recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._native import ffi, lib
from .model import Context, ModelInfo


def native_calibrate(
    context: Context,
    info: ModelInfo,
    k: int,
    n_fac: int,
    n_sink: int,
    n_recent: int,
    *,
    by_mass: bool = True,
    per_head: bool = True,
    seq: int = -1,
    max_steps: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16] | None, npt.NDArray[np.uint16] | None, int]:
    """CA, orders by KV head and by query head (None: not asked for) and the number of steps used, from the context's
    tap. Parameters and errors: ``fasa_calibrate`` in ``fasa.h``."""
    n_chunk = info.head_dim - info.n_rot // 2
    ca = np.empty((info.n_layer, info.n_head, n_chunk), np.float32)
    order = np.empty((info.n_layer, info.n_head_kv, n_chunk), np.uint16) if by_mass else None
    order_head = np.empty((info.n_layer, info.n_head, n_chunk), np.uint16) if by_mass and per_head else None
    params = ffi.new("fasa_calibrate_params *")
    lib.fasa_calibrate_params_default(params)
    params.k, params.n_fac, params.n_sink, params.n_recent = k, n_fac, n_sink, n_recent
    params.seq, params.max_steps = seq, max_steps
    n_steps = ffi.new("int32_t *")
    context._start()
    callback = context._interrupt.progress_callback(progress)

    def pointer(array: npt.NDArray[np.uint16] | None) -> Any:
        return ffi.NULL if array is None else ffi.from_buffer("uint16_t[]", array)

    context._interrupt.check(
        lib.fasa_calibrate(
            ffi.from_buffer("float[]", ca), pointer(order), pointer(order_head), n_steps, context._handle, params,
            callback, ffi.NULL,
        )
    )  # fmt: skip
    return ca, order, order_head, n_steps[0]


def best_by_ca(ca: npt.NDArray[np.float32], layer: int, head_kv: int, n_head_kv: int) -> npt.NDArray[np.intp]:
    """All chunks of a KV head, best first: CA averaged over its query heads, the lower chunk first among equals."""
    group = ca.shape[1] // n_head_kv
    mean = ca[layer, head_kv * group : (head_kv + 1) * group].mean(axis=0)
    return np.argsort(-mean, kind="stable")
