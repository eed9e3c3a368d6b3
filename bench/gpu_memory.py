"""Device memory that one model takes, stage by stage, against its plan; CUDA's context, kernels and graphs included.

    python bench/gpu_memory.py MODEL.gguf --n-ctx 131072 [--vram 8GiB] [--k-dom int8] [--kv split] [--prompt 131000]

Bytes in use on the whole GPU are NVML's (libnvidia-ml), so no other process may come or go meanwhile. The stages show
what the constants of native/src/backend/cuda/system.h have to cover: ``CUDA's context`` (context_bytes_assumed), what
loading and running take beyond the bytes of their buffers (code_bytes), and, from a second context of the same
settings, graphs (graph_node_bytes). Without --prompt nothing is run. Exits with 1 when more was taken than planned.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

MIB = 2**20


class Gpu:
    """Bytes in use on a GPU, by all processes, since this object was made."""

    def __init__(self, index: int) -> None:
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.handle = ctypes.c_void_p()
        self._check(self.nvml.nvmlInit_v2())
        self._check(self.nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self.handle)))
        self.before = 0
        self.before = self.taken()
        self.peak = 0

    @staticmethod
    def _check(status: int) -> None:
        if status != 0:
            raise RuntimeError(f"NVML: status {status}")

    def taken(self) -> int:
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        self._check(self.nvml.nvmlDeviceGetMemoryInfo(self.handle, memory))
        return int(memory[2]) - self.before

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keeps the peak, looking every 5 ms."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                self.peak = max(self.peak, self.taken())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.peak = max(self.peak, self.taken())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--n-batch", type=int, default=512)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--vram", help="a limit, e.g. 8GiB")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--dense-layers", type=int)
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--k-dom", default="f16")
    parser.add_argument("--prompt", type=int, default=0, metavar="N", help="process a prompt of N tokens and decode 64")
    parser.add_argument("--twice", action="store_true", help="make a second context, to tell graphs from kernels")
    a = parser.parse_args()
    gpu = Gpu(int(a.device.partition(":")[2] or 0))

    from sparse_decode import made_up_table

    from fasa_py.gguf import GGUF
    from fasa_py.memory import memory_size
    from fasa_py.method import Method
    from fasa_py.model import Context, ContextSettings, Model

    stages: list[tuple[str, int, int]] = []  # name, taken in it, planned for it

    def stage(name: str, planned: int) -> None:
        stages.append((name, gpu.taken() - sum(s[1] for s in stages), planned))

    gguf, vram = GGUF(a.model), memory_size(a.vram)
    planning = Model(gguf, a.device, vram=vram, plan_only=True)
    stage("CUDA's context", 0)
    with gpu.watched():
        model = Model(gguf, a.device, vram=vram)
        table = None if a.method == "full" or model.has_table else made_up_table(model)
        method = Method.of(a.method, dense_layers=a.dense_layers)
        settings = ContextSettings(a.n_ctx, a.n_batch, method=method, table=table, kv=a.kv, k_dom=a.k_dom)
        plan = model.plan(settings)
        stage("weights", plan.weights_device_bytes)
        context = Context(model, settings)
        stage("KV cache, scratch, graphs", plan.kv_device_bytes + plan.scratch_device_bytes)
        if a.prompt:
            tokens = np.arange(a.prompt, dtype=np.int32) * 7919 % model.info.n_vocab
            context.decode(0, tokens)
            stage("prompt", 0)
            for i in range(min(64, a.n_ctx - a.prompt)):
                context.decode(0, [i])
            stage("64 steps", 0)
    peak = gpu.peak
    if a.twice:
        second = Context(model, settings)
        stage("a second context", plan.kv_device_bytes + plan.scratch_device_bytes)
        second.close()
    print(f"{planning.info.device}, {model.info.arch}, n_ctx {plan.n_ctx}, KV cache: {plan.kv}")
    print("| stage | taken, MiB | its buffers, MiB | beyond them, MiB |\n| --- | ---: | ---: | ---: |")
    for name, taken, planned in stages:
        print(f"| {name} | {taken / MIB:.1f} | {planned / MIB:.1f} | {(taken - planned) / MIB:.1f} |")
    print(
        f"\nplanned for CUDA itself {plan.system_device_bytes / MIB:.1f} MiB, "
        f"on the host {plan.host_bytes / MIB:.1f} MiB"
    )
    planned = plan.device_bytes
    print(f"peak {peak / MIB:.1f} MiB, planned {planned / MIB:.1f} MiB: {peak / planned - 1:+.2%}")
    if vram:
        print(f"limit {vram / MIB:.1f} MiB: {'kept' if peak <= vram else 'EXCEEDED'}")
    return 0 if peak <= min(plan.device_bytes, vram or peak) else 1


if __name__ == "__main__":
    sys.exit(main())
