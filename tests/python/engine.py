"""The engine straight through its C interface, for tests that compare numbers: no tokenizer, no sampling.

Run as a script it computes logits in a process of its own, so that ``FASA_CPU`` (read once per process) can differ:
``engine.py jobs.json out.npz`` with a list of :class:`Job` fields.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import fasa_py
import fasa_py.model
from fasa_py._native import check, ffi, lib, text


@dataclass(frozen=True)
class Table:
    """A calibration table: ca (n_layer, n_head, n_chunk), order (n_layer, n_head_kv, n_chunk), order_head as ca."""

    ca: np.ndarray
    order: np.ndarray
    order_head: np.ndarray
    criterion: str = "mass"

    @classmethod
    def random(cls, n_layer: int, n_head: int, n_head_kv: int, n_chunk: int, seed: int = 0) -> Table:
        rng = np.random.default_rng(seed)

        def orders(n: int) -> np.ndarray:
            chunks = np.tile(np.arange(n_chunk, dtype=np.uint16), (n_layer, n, 1))
            return rng.permuted(chunks, axis=2)

        ca = rng.random((n_layer, n_head, n_chunk), np.float32)
        return cls(ca, orders(n_head_kv), orders(n_head))

    def create(self, model: Any) -> Any:
        out = ffi.new("fasa_table **")
        arrays = [np.ascontiguousarray(a) for a in (self.ca, self.order, self.order_head)]
        kinds = ("float *", "uint16_t *", "uint16_t *")
        pointers = [ffi.cast(kind, a.ctypes.data) for kind, a in zip(kinds, arrays, strict=True)]
        check(lib.fasa_table_create(out, model, getattr(lib, f"FASA_CRITERION_{self.criterion.upper()}"), *pointers))
        return ffi.gc(out[0], lib.fasa_table_free)


def _set_fields(params: Any, fields: Mapping[str, Any]) -> Any:
    """Fill a ``fasa_method_params``; the result keeps the name alive that it borrows."""
    lib.fasa_method_params_default(params if ffi.typeof(params).kind == "pointer" else ffi.addressof(params))
    name = ffi.new("char[]", fields.get("method", "auto").encode())
    for key, value in fields.items():
        setattr(params, key, name if key == "method" else value)
    return name


class Engine:
    """One model with one context. Use it in a ``with`` block."""

    def __init__(
        self,
        path: str | Path,
        n_ctx: int = 0,
        n_batch: int = 0,
        n_seq: int = 0,
        n_threads: int = 0,
        method: Mapping[str, Any] | None = None,
        table: Table | None = None,
        kv: str = "auto",
        k_dom: str = "f16",
        kv_cache_rows: int = -1,
        device: str = "auto",
    ) -> None:
        file, model, context = (ffi.new(f"fasa_{kind} **") for kind in ("gguf", "model", "context"))
        check(lib.fasa_gguf_open(file, str(path).encode()))
        self._file = ffi.gc(file[0], lib.fasa_gguf_free)
        params = ffi.new("fasa_model_params *")
        lib.fasa_model_params_default(params)
        params.device, params.device_index = fasa_py.model.parse_device(device)
        params.n_threads = n_threads
        check(lib.fasa_model_load(model, self._file, params))
        self._model = ffi.gc(model[0], lib.fasa_model_free)
        self.info = ffi.new("fasa_model_info *")
        lib.fasa_model_info_get(self.info, self._model)
        limits = ffi.new("fasa_context_params *")
        lib.fasa_context_params_default(limits)
        limits.n_ctx, limits.n_batch, limits.n_seq = n_ctx, n_batch, n_seq
        name = _set_fields(limits.method, method or {})
        limits.kv = getattr(lib, f"FASA_KV_{kv.upper()}")
        limits.kv_cache_rows = kv_cache_rows
        limits.k_dom = getattr(lib, f"FASA_K_DOM_{k_dom.upper()}")
        held = table.create(self._model) if table else None
        limits.table = held or ffi.NULL
        check(lib.fasa_context_create(context, self._model, limits))
        self._context = ffi.gc(context[0], lib.fasa_context_free)
        del name, held  # were borrowed

    def decode(self, tokens: Sequence[int], seq: int = 0) -> np.ndarray:
        """Append tokens; returns the logits of the last one, float32 (n_vocab,)."""
        check(lib.fasa_decode(self._context, seq, ffi.new("int32_t[]", list(tokens)), len(tokens), ffi.NULL, ffi.NULL))
        logits = ffi.buffer(lib.fasa_logits(self._context), 4 * self.info.n_vocab)
        return np.frombuffer(logits, np.float32).copy()

    def length(self, seq: int = 0) -> int:
        return int(lib.fasa_seq_length(self._context, seq))

    def truncate(self, n_tokens: int, seq: int = 0) -> None:
        check(lib.fasa_seq_truncate(self._context, seq, n_tokens))

    def copy(self, dst: int, src: int, n_tokens: int) -> None:
        check(lib.fasa_seq_copy(self._context, dst, src, n_tokens))

    def save(self, path: Path, seq: int = 0) -> None:
        check(lib.fasa_seq_save(self._context, seq, str(path).encode()))

    def load(self, path: Path, seq: int = 0) -> None:
        check(lib.fasa_seq_load(self._context, seq, str(path).encode()))

    def set_method(self, **fields: Any) -> None:
        """``fasa_method_set``; fields as in ``fasa_method_params``, the others at their defaults."""
        params = ffi.new("fasa_method_params *")
        name = _set_fields(params, fields)
        check(lib.fasa_method_set(self._context, params))
        del name  # was borrowed

    def tap(self, n_steps: int) -> None:
        """Record the next decode steps."""
        check(lib.fasa_tap_start(self._context, n_steps))

    def tapped(self, step: int, layer: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Of a recorded step: rotated queries, float32 (n_head, head_dim), and the lists of positions; none: dense."""
        n_pos, n_set = ffi.new("int32_t *"), ffi.new("int32_t *")
        q = np.empty((self.info.n_head, self.info.head_dim), np.float32)
        q_out, null = ffi.cast("float *", q.ctypes.data), ffi.NULL
        check(lib.fasa_tap_read(self._context, step, layer, null, n_pos, q_out, n_set, null, null))
        count, positions = np.zeros(n_set[0], np.int32), np.zeros((n_set[0], n_pos[0]), np.int32)
        outs = [ffi.cast("int32_t *", a.ctypes.data) for a in (count, positions)]
        check(lib.fasa_tap_read(self._context, step, layer, null, null, null, null, *outs))
        return q, [row[:n].copy() for row, n in zip(positions, count, strict=True)]

    def kv(self, layer: int, head_kv: int, seq: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Rotated keys and values of all cached positions, float32 (n, head_dim) each, dims as in the file."""
        n = self.length(seq)
        k, v = (np.empty((n, self.info.head_dim), np.float32) for _ in range(2))
        outs = [ffi.cast("float *", a.ctypes.data) for a in (k, v)]
        check(lib.fasa_kv_read(*outs, self._context, seq, layer, head_kv, 0, n))
        return k, v

    def plan(self) -> Any:
        """``fasa_plan`` of the context."""
        out = ffi.new("fasa_plan *")
        lib.fasa_context_plan(out, self._context)
        return out

    def stats(self) -> Any:
        """``fasa_stats`` so far."""
        out = ffi.new("fasa_stats *")
        lib.fasa_stats_get(out, self._context)
        return out

    def close(self) -> None:
        for handle in (self._context, self._model, self._file):
            ffi.release(handle)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def isa() -> tuple[str, str, list[str]]:
    """Instruction set in use, why it is, and all that were built."""
    info = ffi.new("fasa_build_info *")
    lib.fasa_build_info_get(info)
    return text(info.cpu_isa), text(info.cpu_isa_reason), [name.strip() for name in text(info.cpu_isa_built).split(",")]


@dataclass(frozen=True)
class Job:
    """Logits to compute: the tokens go in as calls of the given sizes; one row of logits a call."""

    path: str
    tokens: list[int]
    calls: list[int]
    n_batch: int = 0
    n_threads: int = 0
    device: str = "auto"

    def run(self) -> np.ndarray:
        """float32 (len(calls), n_vocab)"""
        rows, at = [], 0
        limits = {"n_ctx": len(self.tokens), "n_batch": self.n_batch, "n_threads": self.n_threads}
        with Engine(self.path, **limits, device=self.device) as engine:
            for size in self.calls:
                rows.append(engine.decode(self.tokens[at : at + size]))
                at += size
        return np.stack(rows)


def run_in_process(jobs: Sequence[Job], directory: Path, cpu: str) -> tuple[list[np.ndarray], str, str]:
    """Run jobs in a new process under ``FASA_CPU=cpu``: their logits, the instruction set used and the reason."""
    request, reply = directory / f"jobs-{cpu}.json", directory / f"logits-{cpu}.npz"
    request.write_text(json.dumps([asdict(job) for job in jobs]), encoding="ascii")
    environment = {**os.environ, "FASA_CPU": cpu, "PYTHONPATH": str(Path(fasa_py.__path__[0]).parent)}
    command = [sys.executable, __file__, str(request), str(reply)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"FASA_CPU={cpu}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    with np.load(reply) as file:
        return [file[f"job{i}"] for i in range(len(jobs))], str(file["isa"]), str(file["reason"])


def main(request: str, reply: str) -> None:
    jobs = [Job(**fields) for fields in json.loads(Path(request).read_text(encoding="ascii"))]
    used, reason, _ = isa()
    np.savez(reply, isa=used, reason=reason, **{f"job{i}": job.run() for i, job in enumerate(jobs)})


if __name__ == "__main__":
    main(*sys.argv[1:])
