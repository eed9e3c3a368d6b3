"""The engine straight through its C interface, for tests that compare numbers: no tokenizer, no sampling.

Run as a script it computes logits in a process of its own, so that ``FASA_CPU`` (read once per process) can differ:
``engine.py jobs.json out.npz`` with a list of :class:`Job` fields.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import fasa_py
from fasa_py._native import check, ffi, lib, text


class Engine:
    """One model with one context. Use it in a ``with`` block."""

    def __init__(self, path: str | Path, n_ctx: int = 0, n_batch: int = 0, n_seq: int = 0, n_threads: int = 0) -> None:
        file, model, context = (ffi.new(f"fasa_{kind} **") for kind in ("gguf", "model", "context"))
        check(lib.fasa_gguf_open(file, str(path).encode()))
        self._file = ffi.gc(file[0], lib.fasa_gguf_free)
        params = ffi.new("fasa_model_params *")
        lib.fasa_model_params_default(params)
        params.device, params.n_threads = lib.FASA_DEVICE_CPU, n_threads
        check(lib.fasa_model_load(model, self._file, params))
        self._model = ffi.gc(model[0], lib.fasa_model_free)
        self.info = ffi.new("fasa_model_info *")
        lib.fasa_model_info_get(self.info, self._model)
        limits = ffi.new("fasa_context_params *")
        lib.fasa_context_params_default(limits)
        limits.n_ctx, limits.n_batch, limits.n_seq = n_ctx, n_batch, n_seq
        check(lib.fasa_context_create(context, self._model, limits))
        self._context = ffi.gc(context[0], lib.fasa_context_free)

    def decode(self, tokens: Sequence[int], seq: int = 0) -> np.ndarray:
        """Append tokens; returns the logits of the last one, float32 (n_vocab,)."""
        check(lib.fasa_decode(self._context, seq, ffi.new("int32_t[]", list(tokens)), len(tokens), ffi.NULL, ffi.NULL))
        logits = ffi.buffer(lib.fasa_logits(self._context), 4 * self.info.n_vocab)
        return np.frombuffer(logits, np.float32).copy()

    def length(self, seq: int = 0) -> int:
        return int(lib.fasa_seq_length(self._context, seq))

    def truncate(self, n_tokens: int, seq: int = 0) -> None:
        check(lib.fasa_seq_truncate(self._context, seq, n_tokens))

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

    def run(self) -> np.ndarray:
        """float32 (len(calls), n_vocab)"""
        rows, at = [], 0
        with Engine(self.path, n_ctx=len(self.tokens), n_batch=self.n_batch, n_threads=self.n_threads) as engine:
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
