"""Calibration tables given by hand: arrays, or those of another calibrated file [FASA §3]."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ._native import check, ffi, lib
from .errors import FormatError
from .method import criterion_number
from .model import Model


class Table:
    """A calibration table for a model, instead of the one that its file may carry.

    :param ca: contextual agreement, float ``(n_layer, n_head, n_chunk)``, 0 to 1
    :param order: chunks of each KV head, best first, whole numbers ``(n_layer, n_head_kv, n_chunk)``; may be None
    :param order_head: likewise of each query head, ``(n_layer, n_head, n_chunk)``; may be None
    :param criterion: the default, ``ca`` or ``mass``; ``mass`` needs an order
    :param n_tip: recommended number of dominant chunks; None: none
    :raises FormatError: the arrays do not fit the model, or hold what no calibration gives
    """

    def __init__(
        self, model: Model, ca: npt.ArrayLike, order: npt.ArrayLike | None, order_head: npt.ArrayLike | None,
        criterion: str, n_tip: int | None = None,
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
        self.n_tip = n_tip


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

    :param source: a path, or anything like a :class:`fasa_py.CalibrationTable`: with ``ca`` and, where it has them,
        ``order``, ``order_head``, ``criterion``, ``n_tip`` and ``chunk_layout``
    :raises OSError, FormatError: the file cannot be read, has no table, or one that does not fit the model
    :raises TypeError: an object without ``ca``
    """
    from .calibration import CalibrationTable  # it runs models, which have tables

    if isinstance(source, (str, os.PathLike)):
        source = CalibrationTable.from_gguf(source)
    if not hasattr(source, "ca"):
        raise TypeError(f"a table is the path of a calibrated file, or has ca and order, not {type(source).__name__}")
    layout = getattr(source, "chunk_layout", model.info.rope_layout)
    if layout != model.info.rope_layout:
        raise FormatError(
            f'the table was made for the chunk layout "{layout}", this model\'s is "{model.info.rope_layout}"'
        )
    order, order_head = getattr(source, "order", None), getattr(source, "order_head", None)
    criterion = getattr(source, "criterion", None) or ("ca" if order is None else "mass")
    return Table(model, source.ca, order, order_head, criterion, getattr(source, "n_tip", None))
