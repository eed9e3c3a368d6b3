"""Calibration tables given by hand: arrays, or those of another calibrated file [FASA §3]."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._native import check, ffi, lib
from .errors import FormatError
from .gguf import GGUF
from .method import criterion_number
from .model import Model


class Table:
    """A calibration table for a model, instead of the one that its file may carry.

    :param ca: contextual agreement, float ``(n_layer, n_head, n_chunk)``, 0 to 1
    :param order: chunks of each KV head, best first, whole numbers ``(n_layer, n_head_kv, n_chunk)``; may be None
    :param order_head: likewise of each query head, ``(n_layer, n_head, n_chunk)``; may be None
    :param criterion: the default, ``ca`` or ``mass``; ``mass`` needs an order
    :raises FormatError: the arrays do not fit the model, or hold what no calibration gives
    """

    def __init__(
        self, model: Model, ca: npt.ArrayLike, order: npt.ArrayLike | None, order_head: npt.ArrayLike | None,
        criterion: str,
    ) -> None:  # fmt: skip
        info, n = model.info, n_chunk(model)
        scores = _checked("ca", ca, np.float32, (info.n_layer, info.n_head, n))
        by_kv_head = _checked("order", order, np.uint16, (info.n_layer, info.n_head_kv, n))
        by_head = _checked("order_head", order_head, np.uint16, (info.n_layer, info.n_head, n))
        out = ffi.new("fasa_table **")
        check(
            lib.fasa_table_create(
                out, model._handle, criterion_number(criterion), _pointer("float[]", scores),
                _pointer("uint16_t[]", by_kv_head), _pointer("uint16_t[]", by_head),
            )
        )  # fmt: skip
        self._handle: Any = ffi.gc(out[0], lib.fasa_table_free)


def n_chunk(model: Model) -> int:
    """Frequency chunks of a head: pairs of dims that RoPE turns, and single dims outside it."""
    return model.info.head_dim - model.info.n_rot // 2


def _checked(name: str, values: Any, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    if values is None:
        return None
    given = np.asarray(values)
    if given.shape != shape:
        raise FormatError(f"the table's {name} has the shape {given.shape}, this model needs {shape}")
    if given.dtype.kind not in ("fiu" if dtype is np.float32 else "iu"):
        raise FormatError(f"the table's {name} has the type {given.dtype}")
    if dtype is np.uint16 and (given.min() < 0 or given.max() >= shape[-1]):
        raise FormatError(f"the table's {name} must name chunks from 0 to {shape[-1] - 1}")
    return np.ascontiguousarray(given, dtype=dtype)


def _pointer(kind: str, array: npt.NDArray[Any] | None) -> Any:
    return ffi.NULL if array is None else ffi.from_buffer(kind, array)


def load_table(model: Model, source: Any) -> Table:
    """The table that a calibrated GGUF file carries, or that an object describes.

    :param source: a path, or anything with ``ca`` and, where it has them, ``order``, ``order_head`` and ``criterion``
    :raises OSError, FormatError: the file cannot be read, has no table, or one that does not fit the model
    :raises TypeError: an object without ``ca``
    """
    if isinstance(source, (str, os.PathLike)):
        with GGUF(source) as gguf:
            return _stored_table(model, gguf.path, gguf.metadata)
    if not hasattr(source, "ca"):
        raise TypeError(f"a table is the path of a calibrated file, or has ca and order, not {type(source).__name__}")
    order, order_head = getattr(source, "order", None), getattr(source, "order_head", None)
    criterion = getattr(source, "criterion", None) or ("ca" if order is None else "mass")
    return Table(model, source.ca, order, order_head, criterion)


def _stored_table(model: Model, path: str, metadata: Mapping[str, Any]) -> Table:
    """The table of another file: checked as the model's own would be."""
    if "fasa.version" not in metadata:
        raise FormatError(f"{path}: the file carries no FASA table (python tools/calibrate_to_gguf.py makes one)")
    expected = {"fasa.version": 1, "fasa.n_chunk": n_chunk(model), "fasa.chunk_layout": model.info.rope_layout}
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise FormatError(f'{path}: metadata key "{key}" is {metadata.get(key)!r}, this model needs {value!r}')
    info = model.info

    def array(key: str, n_head: int) -> Any:
        values = metadata.get(key)
        if values is None:
            return None
        size = info.n_layer * n_head * n_chunk(model)
        if not isinstance(values, np.ndarray) or len(values) != size:
            raise FormatError(f'{path}: metadata key "{key}" is no array of {size} numbers, as this model needs')
        return values.reshape(info.n_layer, n_head, n_chunk(model))

    ca = array("fasa.ca_scores", info.n_head)
    criterion = metadata.get("fasa.criterion")
    if ca is None or criterion not in ("ca", "mass"):
        raise FormatError(f'{path}: the FASA table has no "fasa.ca_scores", or no "fasa.criterion" of ca and mass')
    order, order_head = array("fasa.chunk_order", info.n_head_kv), array("fasa.chunk_order_head", info.n_head)
    return Table(model, ca, order, order_head, criterion)
