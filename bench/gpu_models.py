"""Speed of whole models on a GPU: decode at several depths, prefill of several lengths, device memory against the plan.

    python bench/gpu_models.py [llama-3.1-8b:Q4_K_M ...] [--ops ops.json] [--peer llama-bench] [--json models.json]

Models are made on the spot (random weights, bench/make_model.py), each is measured in a process of its own, and what a
process that failed or ran out of time had found by then is kept. Methods, each in a context of its own: ``dense``,
``fasa`` (with a made-up table: which tokens are chosen then means nothing, how many bytes are read is the same) and
``fasa-m``, whose rows of keys and values lie in host memory, also with a cache of rows on the device.

The context is filled with a real prompt (``--fill prefill``), or (``state``) with random keys and values, through a
saved state that is made on the spot: that takes the same seconds whatever prefill does, needs the xxhash package, and
room for the KV cache in --dir. ``auto`` takes the prompt for the first method and the state for others, if it can.

With ``--session`` the whole sequence is also saved and restored at the greatest depth.

``of copy`` is the share of the copy bandwidth (of --ops, written by fasa_gpu_ops) at which a decode step reads its
weights and its part of the KV cache. ``peer`` is a llama.cpp measured in the same run (--peer, its llama-bench), else
the published figures for one model, scaled by copy bandwidth / 3.95 TB/s.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from make_model import MIXES, SHAPES, make
from side_by_side import REPOSITORY, token
from sparse_decode import made_up_table

MODELS = [f"{shape}:{mix}" for shape in ("llama-3.1-8b", "qwen2.5-7b") for mix in MIXES]
DEPTHS = [0, 4096, 16384, 32768, 65536, 131072]
PREFILLS = [512, 4096, 32768]
# Method, how its dominant keys are stored, placement of the KV cache, rows of it in the device's cache.
METHODS: dict[str, tuple[str, str, str, int | None]] = {
    "dense": ("full", "f16", "device", 0),
    "fasa": ("fasa", "f16", "device", 0),
    "fasa-int8": ("fasa", "int8", "device", 0),
    "fasa-q4": ("fasa", "q4", "device", 0),
    "fasa-m": ("fasa", "f16", "split", 0),
    "fasa-m-int8": ("fasa", "int8", "split", 0),
    "fasa-m-q4": ("fasa", "q4", "split", 0),
    "fasa-m-cache": ("fasa", "f16", "split", None),
}
WARM_UP = 4  # steps, the first of which records the graph of its length

# llama.cpp (ggml 0.25.3, CUDA, flash attention, ubatch 2048) on a GPU that copies at 3.95 TB/s: tokens/s.
PEER_MODEL, PEER_COPY_GB_S = "llama-3.1-8b:Q4_K_M", 3950.0
PEER = {
    "prefill": {512: 8932.0, 4096: 10364.0, 32768: 8370.0},
    "decode": {0: 272.0, 4096: 257.0, 16384: 220.0, 32768: 182.0, 65536: 140.0, 131072: 90.0},
}


def tokens(first: int, end: int) -> np.ndarray:
    return np.array([token(i) for i in range(first, end)], np.int32)


class DeviceMemory:
    """Bytes in use on the GPU since this object was made, by the driver's count; None of it where there is no driver.

    It is made before the engine is loaded and brings up the same primary context, so what that takes is left out.
    """

    def __init__(self, device: str) -> None:
        self.driver: Any = None
        self.peak = 0
        index = int(device.partition(":")[2] or 0)
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL("libcuda.so.1")
            self.context = ctypes.c_void_p()
            handle = ctypes.c_int()
            if (
                device != "cpu"
                and driver.cuInit(0) == 0
                and driver.cuDeviceGet(ctypes.byref(handle), index) == 0
                and driver.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), handle) == 0
            ):
                self.driver = driver
                self.before = self._in_use()

    def _in_use(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.driver.cuCtxSetCurrent(self.context)  # every thread has its own
        if self.driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) != 0:
            raise RuntimeError("cuMemGetInfo failed")
        return total.value - free.value

    def look(self) -> int | None:
        if self.driver is None:
            return None
        used = self._in_use() - self.before
        self.peak = max(self.peak, used)
        return used

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Looks every 20 ms meanwhile."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                self.look()

        thread = threading.Thread(target=watch)
        if self.driver is not None:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if self.driver is not None:
                thread.join()
                self.look()


def write_random_state(context: Any, path: Path, n: int) -> None:
    """A saved state (docs/formats.md) of n tokens with random keys and values, for this model and layout of the cache.

    The head of a real one is kept, so that the engine takes it. Halves are of random sign and mantissa and of size 1/16
    to 1, and repeat only after more than a KV head's share, so that no two positions of a head score alike.
    """
    import xxhash

    context.decode(0, tokens(0, 2))
    context.save(0, path)
    context.truncate(0, 0)
    saved = path.read_bytes()
    head = bytearray(saved[:48])
    head[12:16] = struct.pack("<I", n)
    head_dim = struct.unpack_from("<3I", head, 24)[2]
    left = ((len(saved) - 48 - 8) // 2 - 4) * n  # without the tokens and the checksum
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, min(4 * head_dim * n, left) // 2 + 12345, np.uint16)
    pool = ((bits & 0x83FF) | (14 - (bits >> 10 & 3)) << 10).astype(np.uint16).view(np.uint8)
    digest = xxhash.xxh64()
    with path.open("wb") as file:
        for part in (bytes(head), tokens(0, n).tobytes()):
            digest.update(part)
            file.write(part)
        while left > 0:
            chunk = pool[:left].data
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
        file.write(struct.pack("<Q", digest.intdigest()))


def can_write_state() -> bool:
    try:
        import xxhash  # noqa: F401
    except ImportError:
        return False
    return True


Emit = Callable[..., None]


class Measurement:
    """One model in this process: results go out one by one, as they are found."""

    def __init__(self, arguments: argparse.Namespace, path: Path, emit: Emit) -> None:
        self.arguments, self.path, self.emit = arguments, path, emit
        self.memory = DeviceMemory(arguments.device)
        from fasa_py.gguf import GGUF
        from fasa_py.model import Model

        start = time.perf_counter()
        with self.memory.watched():
            self.model = Model(GGUF(path), arguments.device)
        info = self.model.info
        emit("model", device=info.device, n_bytes=info.n_bytes, load_s=time.perf_counter() - start)

    def run(self) -> None:
        for i, name in enumerate(self.arguments.methods):
            fill = self.arguments.fill
            if fill == "auto":
                fill = "state" if i > 0 and can_write_state() else "prefill"
            self.run_method(name, fill)

    def run_method(self, name: str, fill: str) -> None:
        from fasa_py.method import Method
        from fasa_py.model import Context, ContextSettings

        a = self.arguments
        n_ctx = max([*a.depths, *a.prefills]) + max(a.steps, WARM_UP)
        method, k_dom, kv, rows = METHODS[name]
        needs_table = method == "fasa" and not self.model.has_table
        table = made_up_table(self.model) if needs_table else None
        self.memory.peak = 0
        with self.memory.watched():
            start = time.perf_counter()
            settings = ContextSettings(
                n_ctx,
                n_batch=a.n_batch,
                method=Method(method, dense_layers=a.dense_layers),
                table=table,
                k_dom=k_dom,
                kv=kv,
                kv_cache_rows=rows,
            )
            context = Context(self.model, settings)
        plan = context.plan
        self.emit(
            "plan", method=name, n_ctx=n_ctx, fill=fill, weights_bytes=plan.weights_device_bytes,
            kv_bytes=plan.kv_device_bytes, scratch_bytes=plan.scratch_device_bytes, pinned_bytes=plan.host_bytes,
            create_s=time.perf_counter() - start, row_cache_bytes=plan.row_cache_bytes,
        )  # fmt: skip
        try:
            if name == a.methods[0]:
                self.prefill(context, name)
            self.decode(context, name, fill)
        finally:
            self.memory.look()
            if self.memory.driver is not None:
                self.emit("memory", method=name, peak_bytes=self.memory.peak)
            context.close()

    def prefill(self, context: Any, name: str) -> None:
        context.decode(0, tokens(0, min(self.arguments.prefills)))  # warm up
        for n in sorted(self.arguments.prefills):
            repeats = self.arguments.repeats if n <= 8192 else 1
            seconds = []
            for _ in range(repeats):
                context.truncate(0, 0)
                seconds.append(self.append(context, n))
            self.emit("prefill", method=name, n=n, tokens_per_s=n / statistics.median(seconds), seconds=seconds)
        context.truncate(0, 0)

    def append(self, context: Any, end: int) -> float:
        """Seconds to process the tokens up to `end`."""
        prompt = tokens(context.length(0), end)
        with self.memory.watched():
            start = time.perf_counter()
            context.decode(0, prompt)
            return time.perf_counter() - start

    def decode(self, context: Any, name: str, fill: str) -> None:
        depths = sorted(self.arguments.depths, reverse=fill == "state")
        if fill == "state" and depths[0] > 0:
            path = self.path.with_suffix(".state")
            start = time.perf_counter()
            write_random_state(context, path, depths[0])
            context.load(0, path)
            path.unlink()
            self.emit("fill", method=name, n=depths[0], seconds=time.perf_counter() - start)
        filled_s = 0.0
        for depth in depths:
            if context.length(0) < depth:
                filled_s += self.append(context, depth)
                self.emit("fill", method=name, n=depth, seconds=filled_s, tokens_per_s=depth / filled_s)
            self.steps(context, depth, WARM_UP)
            before = context.stats()
            seconds = [
                s for _ in range(self.arguments.repeats) for s in self.steps(context, depth, self.arguments.steps)
            ]
            after = context.stats()
            context.truncate(0, depth)
            n_steps = after.n_decode - before.n_decode
            n_bytes = (after.decode_bytes - before.decode_bytes) / n_steps
            self.memory.look()
            self.emit(
                "decode", method=name, depth=depth, tokens_per_s=1 / statistics.median(seconds), best_s=min(seconds),
                mean_s=statistics.fmean(seconds), bytes_per_step=n_bytes,
                rows_hit=after.rows_hit - before.rows_hit, rows_missed=after.rows_missed - before.rows_missed,
                pcie_bytes_per_step=(after.pcie_bytes - before.pcie_bytes) / n_steps,
                finite=bool(np.isfinite(context.logits).all()),
            )  # fmt: skip
            if self.arguments.session is not None and depth == max(depths):
                self.session(context, name)

    def session(self, context: Any, name: str) -> None:
        """Saves the sequence, restores it, and sees whether it goes on as before."""
        path, n = self.arguments.session / (self.path.stem + ".session"), context.length(0)

        def next_logits() -> np.ndarray:
            context.decode(0, [token(n)])
            logits = context.logits.copy()
            context.truncate(0, n)
            return logits

        expected = next_logits()
        try:
            start = time.perf_counter()
            context.save(0, path)
            saved = time.perf_counter()
            n_bytes = path.stat().st_size
            context.truncate(0, 0)
            emptied = time.perf_counter()
            context.load(0, path)
            save_s, load_s = saved - start, time.perf_counter() - emptied
        finally:
            path.unlink(missing_ok=True)
        same = bool(np.array_equal(next_logits(), expected))
        self.emit("session", method=name, n=n, n_bytes=n_bytes, save_s=save_s, load_s=load_s, same=same)

    def steps(self, context: Any, depth: int, n: int) -> list[float]:
        """Seconds of each of n steps that start from `depth` tokens."""
        context.truncate(0, depth)
        seconds = []
        for i in range(n):
            one = [token(depth + i)]
            start = time.perf_counter()
            context.decode(0, one)
            seconds.append(time.perf_counter() - start)
        return seconds


def serve(arguments: argparse.Namespace) -> None:
    """The process of one model: one JSON object a line on stdout."""

    def emit(kind: str, **values: Any) -> None:
        print(json.dumps({"kind": kind, **values}), flush=True)

    Measurement(arguments, arguments.serve, emit).run()


def measured(arguments: argparse.Namespace, path: Path, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Results of a model and, unless it was measured to the end, why not."""
    command = [sys.executable, __file__, "--serve", str(path), *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(max(seconds, 1), process.kill)
        timer.start()
        results = []
        assert process.stdout is not None
        for line in process.stdout:
            results.append(json.loads(line))
            print("  " + line.strip(), file=sys.stderr, flush=True)
        process.wait()
        timer.cancel()
    if process.returncode == 0:
        return results, ""
    return results, "out of time" if process.returncode == -9 else f"ended with exit code {process.returncode}"


def peer_speeds(program: Path, path: Path, arguments: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Medians of llama-bench on the same file, with flash attention."""
    common = [str(program), "-m", str(path), "-ngl", "99", "-fa", "1", "-b", "2048", "-ub", "2048", "-o", "json"]
    prompts, depths = (",".join(map(str, values)) for values in (arguments.prefills, arguments.depths))
    speeds: dict[str, dict[int, float]] = {"prefill": {}, "decode": {}}
    for extra in (
        ["-p", prompts, "-n", "0", "-r", "2"],
        ["-p", "0", "-n", str(arguments.steps), "-d", depths, "-r", "2"],
    ):
        run = subprocess.run(common + extra, check=True, stdout=subprocess.PIPE, text=True)
        for row in json.loads(run.stdout):
            speed = statistics.median(row["samples_ts"])
            if row["n_gen"] > 0:
                speeds["decode"][row["n_depth"]] = speed
            else:
                speeds["prefill"][row["n_prompt"]] = speed
    return speeds


def table(report: dict[str, Any], copy_gb_s: float | None) -> str:
    """Markdown of one model."""

    def rows(kind: str, method: str) -> Iterator[dict[str, Any]]:
        return (row for row in report["results"] if row["kind"] == kind and row.get("method") == method)

    def ratio(kind: str, n: int, speed: float) -> str:
        peer = report["peer"].get(kind, {}).get(n)
        return f"{peer:.0f} | {speed / peer:.2f}" if peer else "|"

    lines = [f"### {report['model']}{': ' + report['problem'] if report['problem'] else ''}", ""]
    for row in report["results"]:
        if row["kind"] == "model":
            lines += [f"{row['device']}, {row['n_bytes'] / 1e9:.2f} GB of weights, loaded in {row['load_s']:.1f} s"]
    for name in METHODS:
        for plan in rows("plan", name):
            planned = plan["weights_bytes"] + plan["kv_bytes"] + plan["scratch_bytes"]
            line = f"{name}: n_ctx {plan['n_ctx']}, planned {planned / 2**20:.1f} MiB (KV cache "
            line += f"{plan['kv_bytes'] / 2**20:.1f}), pinned {plan['pinned_bytes'] / 2**20:.1f} MiB"
            for memory in rows("memory", name):
                peak = memory["peak_bytes"]
                line += f", peak on the device {peak / 2**20:.1f} MiB ({peak / planned - 1:+.2%})"
            lines.append(line)
        for row in rows("session", name):
            speeds = [row["n_bytes"] / row[key] / 1e9 for key in ("save_s", "load_s")]
            lines.append(
                f"{name}: session of {row['n']} tokens, {row['n_bytes'] / 1e9:.2f} GB, saved in {row['save_s']:.1f} s "
                f"({speeds[0]:.1f} GB/s), restored in {row['load_s']:.1f} s ({speeds[1]:.1f} GB/s)"
                f"{'' if row['same'] else ', GOES ON OTHERWISE'}"
            )
    lines += ["", "| | tokens/s | of copy | peer | / peer |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in METHODS:
        for row in rows("prefill", name):
            speed = row["tokens_per_s"]
            lines.append(f"| prefill {row['n']} | {speed:.0f} | | {ratio('prefill', row['n'], speed)} |")
        for row in rows("fill", name):
            if row.get("tokens_per_s"):
                lines.append(f"| prefill {row['n']}, in parts | {row['tokens_per_s']:.0f} | | | |")
        for row in sorted(rows("decode", name), key=lambda row: row["depth"]):
            speed = row["tokens_per_s"]
            share = f"{row['bytes_per_step'] * speed / copy_gb_s / 1e9:.1%}" if copy_gb_s else ""
            what = f"{name} decode at {row['depth']}{'' if row['finite'] else ', NOT FINITE'}"
            if n_rows := row["rows_hit"] + row["rows_missed"]:
                what += f", {row['rows_hit'] / n_rows:.0%} of rows found"
            if row["pcie_bytes_per_step"]:
                what += f", {row['pcie_bytes_per_step'] / 1e6:.1f} MB over PCIe"
            lines.append(f"| {what} | {speed:.1f} | {share} | {ratio('decode', row['depth'], speed)} |")
    return "\n".join(lines) + "\n"


def measure_model(name: str, arguments: argparse.Namespace, copy_gb_s: float | None, deadline: float) -> dict[str, Any]:
    shape, _, mix = name.partition(":")
    path = arguments.dir / f"{shape}-{mix}.gguf"
    if not path.exists():
        start = time.perf_counter()
        make(path, SHAPES[shape], mix)
        print(f"{path} in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    try:
        results, problem = measured(arguments, path, deadline - time.monotonic())
        peer: dict[str, dict[int, float]] = {}
        if arguments.peer is not None:
            try:
                peer = peer_speeds(arguments.peer, path, arguments)
            except (OSError, subprocess.CalledProcessError, ValueError) as error:
                problem = f"{problem}; the peer failed: {error}".lstrip("; ")
        elif name == PEER_MODEL and copy_gb_s:
            scale = copy_gb_s / PEER_COPY_GB_S
            peer = {kind: {n: speed * scale for n, speed in figures.items()} for kind, figures in PEER.items()}
    finally:
        if not arguments.keep:
            path.unlink()
            path.with_suffix(".state").unlink(missing_ok=True)
    return {"model": name, "problem": problem, "results": results, "peer": peer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="SHAPE:MIX of bench/make_model.py")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dir", type=Path, default=REPOSITORY / "build" / "models", help="for models and states")
    parser.add_argument("--keep", action="store_true", help="the models")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--prefills", type=int, nargs="+", default=PREFILLS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dense", "fasa"])
    parser.add_argument("--fill", choices=["auto", "prefill", "state"], default="auto")
    parser.add_argument("--n-batch", type=int, default=2048)
    parser.add_argument("--dense-layers", type=int, default=0, help="of fasa and fasa-m")
    parser.add_argument("--steps", type=int, default=48, help="decoded in one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--session", type=Path, nargs="?", const=Path("/dev/shm"), metavar="DIR",
        help="time saving and restoring the sequence at the greatest depth, in DIR (default %(const)s)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3600, help="for everything; no model is begun after them")
    parser.add_argument("--ops", type=Path, help="JSON of fasa_gpu_ops")
    parser.add_argument("--peer", type=Path, help="llama.cpp's llama-bench")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "gpu_models.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments)
        return 0
    for name in arguments.models:
        shape, _, mix = name.partition(":")
        if shape not in SHAPES or mix not in MIXES:
            parser.error(f"{name}: expected one of {', '.join(SHAPES)}, then : and one of {', '.join(MIXES)}")
    arguments.dir.mkdir(parents=True, exist_ok=True)
    copy_gb_s = json.loads(arguments.ops.read_text())["copy_gb_s"] if arguments.ops else None
    deadline = time.monotonic() + arguments.seconds
    reports: list[dict[str, Any]] = []
    for name in arguments.models:
        if time.monotonic() > deadline:
            print(f"{name}: no time left", flush=True)
            continue
        reports.append(measure_model(name, arguments, copy_gb_s, deadline))
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"copy_gb_s": copy_gb_s, "models": reports}, indent=1) + "\n")
        print(table(reports[-1], copy_gb_s), flush=True)
    return 0 if len(reports) == len(arguments.models) and not any(report["problem"] for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
