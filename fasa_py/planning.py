"""What a model and a context of given settings take, before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from .gguf import GGUF
from .memory import memory_size
from .method import Method
from .model import ContextSettings, Model, ModelInfo, Plan
from .sampling import whole_number
from .table import Table, load_table


def checked_settings(
    n_ctx: int | None, n_batch: int, n_seq: int, method: Method, kv: str, k_dom: str, kv_cache_rows: int | None
) -> ContextSettings:
    """Settings of a context, all within their ranges.

    :raises ValueError: one is not
    """
    settings = ContextSettings(
        whole_number("n_ctx", n_ctx or 0, 0, 2**31 - 1),
        whole_number("n_batch", n_batch, 1, 2**20),
        whole_number("n_seq", n_seq, 1, 4096),
        method,
        kv=kv,
        k_dom=k_dom,
        kv_cache_rows=None if kv_cache_rows is None else whole_number("kv_cache_rows", kv_cache_rows, 0, 2**28),
    )
    settings.params()
    return settings


def with_table(settings: ContextSettings, model: Model, source: Any) -> ContextSettings:
    """The settings with the table that a caller gave, None: the file's own."""
    if source is None:
        return settings
    table = load_table(model, source)
    return replace(settings, table=table, method=advised(settings.method, table))


def advised(method: Method, table: Table | None) -> Method:
    """With the n_tip that a table given by hand recommends; of the file's own table, the engine knows."""
    return method if table is None or method.n_tip is not None else replace(method, n_tip=table.n_tip)


def plan(
    path: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_batch: int = 512,
    n_seq: int = 1,
    n_threads: int | None = None,
    device: str = "auto",
    vram: int | str | None = None,
    method: str | Method = "auto",
    paper: bool = False,
    granularity: str | None = None,
    kv: str = "auto",
    kv_cache_rows: int | None = None,
    k_dom: str = "f16",
    table: Any = None,
    **settings: Any,
) -> Plan:
    """Bytes that :class:`fasa_py.Llama` with the same arguments would take, on device and host, without loading.

    Nothing is reserved, and a plan that does not fit is no error: ``fits`` says, ``device_missing`` and
    ``host_missing`` by how much, ``n_ctx_max`` what would.

    :param vram: as for Llama. Where no GPU is visible, a build with CUDA plans for one with so much memory: one of 132
        multiprocessors and compute capability 9.0, on which the size of the workspace and of CUDA's own memory depend a
        little
    :param settings: further ones of the method, as for Llama
    :raises OutOfMemoryError: no n_ctx was given, and none fits
    :raises OSError, FormatError, UnsupportedError, ValueError, DeviceError: as Llama does
    """
    asked = Method.of(method, paper, granularity, **settings)
    checked = checked_settings(n_ctx, n_batch, n_seq, asked, kv, k_dom, kv_cache_rows)
    return describe(path, checked, n_threads, device, vram, table)[1]


def describe(
    path: str | os.PathLike[str],
    settings: ContextSettings,
    n_threads: int | None = None,
    device: str = "auto",
    vram: int | str | None = None,
    table: Any = None,
) -> tuple[ModelInfo, Plan]:
    """The model, with the device that it would be on, and the plan."""
    with GGUF(path) as gguf:
        model = Model(gguf, device, n_threads, vram=memory_size(vram), plan_only=True)
        return model.info, model.plan(with_table(settings, model, table))
