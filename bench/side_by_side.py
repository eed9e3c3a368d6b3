"""fasa_py and llama-cpp-python on the same GGUF, interleaved, with the same number of threads.

    python bench/side_by_side.py model.gguf [more.gguf ...] [--threads 2] [--repeats 5] [--json build/side_by_side.json]

Each engine lives in a process and an environment of its own (``bench/peer.py`` builds the peer's) and answers one
request at a time over a pipe, so only one of them works at any moment. The peer runs with flash attention off and on;
every figure is compared with the faster of the two. Reported: medians, their ratio, the share of the measured read
bandwidth that our decode reaches, and our peak memory against file size and KV cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DEPTHS = (0, 4096)  # tokens in the context before decoding
N_PREFILL = 512
N_REPEATED = 256  # tokens that a made-up cache repeats


def token(i: int) -> int:
    """The i-th token fed to both engines: ids below 256 exist in every vocabulary of the bench models."""
    return (i * 7919 + 13) % 251


class Ours:
    """The engine of this repository through its C interface."""

    variants = ("",)

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        sys.path.insert(0, str(REPOSITORY / "tests" / "python"))
        from engine import Engine

        self.engine = Engine(path, n_ctx=n_ctx, n_batch=N_PREFILL, n_threads=n_threads)

    def decode(self, variant: str, tokens: list[int]) -> None:
        self.engine.decode(tokens)

    def truncate(self, variant: str, n: int) -> None:
        self.engine.truncate(n)

    def report(self) -> dict[str, Any]:
        plan, stats = self.engine.plan(), self.engine.stats()
        return {
            "kv_bytes": plan.kv_device_bytes + plan.kv_host_bytes,
            "decode_bytes": stats.decode_bytes,
            "n_decode": stats.n_decode,
        }


class Peer:
    """llama.cpp through the low-level functions of llama-cpp-python: nothing but llama_decode is timed."""

    variants = ("flash off", "flash on")

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        import ctypes

        import llama_cpp

        self.c, self.llama = ctypes, llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.contexts = {}
        for variant in self.variants:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, N_PREFILL, N_PREFILL
            params.n_threads = params.n_threads_batch = n_threads
            params.flash_attn_type = int(variant == "flash on")
            self.contexts[variant] = llama_cpp.llama_init_from_model(model, params)

    def decode(self, variant: str, tokens: list[int]) -> None:
        context = self.contexts[variant]
        for start in range(0, len(tokens), N_PREFILL):
            part = tokens[start : start + N_PREFILL]
            array = (self.c.c_int32 * len(part))(*part)  # the batch only points to it
            if self.llama.llama_decode(context, self.llama.llama_batch_get_one(array, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        self.llama.llama_synchronize(context)

    def truncate(self, variant: str, n: int) -> None:
        self.llama.llama_memory_seq_rm(self.llama.llama_get_memory(self.contexts[variant]), 0, n, -1)

    def repeat(self, variant: str, depth: int) -> None:
        """Fill the cache up to depth, a multiple of N_REPEATED, with the same few tokens over and over."""
        from peer_state import repeated

        context = self.contexts[variant]
        self.truncate(variant, 0)
        self.decode(variant, [token(i) for i in range(N_REPEATED)])
        n_bytes = self.llama.llama_state_seq_get_size(context, 0)
        state = (self.c.c_uint8 * n_bytes)()
        self.llama.llama_state_seq_get_data(context, state, n_bytes, 0)
        self.truncate(variant, 0)
        long = repeated(bytes(state), depth // N_REPEATED)
        array = (self.c.c_uint8 * len(long)).from_buffer_copy(long)
        if self.llama.llama_state_seq_set_data(context, array, len(long), 0) != len(long):
            raise RuntimeError("llama.cpp refused the repeated state")

    def report(self) -> dict[str, Any]:
        return {}


ENGINES: dict[str, Callable[[str, int, int], Any]] = {"ours": Ours, "peer": Peer}


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes (mapped files included)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def serve(name: str, path: str, n_ctx: int, n_threads: int) -> None:
    """Worker: one JSON request a line on stdin, one answer a line on stdout."""
    engine = ENGINES[name](path, n_ctx, n_threads)
    lengths = dict.fromkeys(engine.variants, 0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "report":
            print(json.dumps({**engine.report(), "peak_bytes": peak_memory()}), flush=True)
            continue
        variant, depth, n = request["variant"], request["depth"], request["n"]
        if request.get("repeat") and lengths[variant] < depth:
            engine.repeat(variant, depth)
        elif lengths[variant] > depth:
            engine.truncate(variant, depth)
        elif lengths[variant] < depth:
            engine.decode(variant, [token(i) for i in range(lengths[variant], depth)])
        tokens = [token(i) for i in range(depth, depth + n)]
        start = time.perf_counter()
        if request["do"] == "prefill":
            engine.decode(variant, tokens)
        else:
            for one in tokens:
                engine.decode(variant, [one])
        seconds = time.perf_counter() - start
        lengths[variant] = depth + n
        print(json.dumps({"tokens_per_s": n / seconds}), flush=True)


class Worker:
    """A serving process; ``ask`` waits for its answer."""

    def __init__(self, python: Path, name: str, path: Path, n_ctx: int, n_threads: int) -> None:
        command = [str(python), __file__, "--serve", name, str(path), str(n_ctx), str(n_threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        time.sleep(0.1)  # until the other engine's threads have stopped spinning
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended early with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def read_bandwidth(n_threads: int) -> float:
    """GB/s, from bench/bandwidth.cpp."""
    program = REPOSITORY / "build" / "bandwidth"
    program.parent.mkdir(exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    source = REPOSITORY / "bench" / "bandwidth.cpp"
    subprocess.run(
        [compiler, "-std=c++20", "-O3", "-march=native", "-pthread", str(source), "-o", str(program)], check=True
    )
    return float(subprocess.run([program, str(n_threads)], check=True, capture_output=True, text=True).stdout)


def compare(path: Path, peer_python: Path, n_threads: int, repeats: int, n_decode: int) -> dict[str, Any]:
    """All measurements of one model."""
    n_ctx = max(DEPTHS) + max(n_decode, N_PREFILL)
    workers = {
        "ours": Worker(Path(sys.executable), "ours", path, n_ctx, n_threads),
        "peer": Worker(peer_python, "peer", path, n_ctx, n_threads),
    }
    measurements = {f"decode at {depth}": {"do": "decode", "depth": depth, "n": n_decode} for depth in DEPTHS}
    measurements[f"prefill {N_PREFILL}"] = {"do": "prefill", "depth": 0, "n": N_PREFILL}
    figures: dict[str, Any] = {}
    for title, request in measurements.items():
        speeds: dict[str, list[float]] = {}
        for repeat in range(repeats + 1):  # the first round warms up and is dropped
            for name, worker in workers.items():
                for variant in ENGINES[name].variants:  # type: ignore[attr-defined]
                    speed = worker.ask(**request, variant=variant)["tokens_per_s"]
                    if repeat > 0:
                        speeds.setdefault(f"{name} {variant}".strip(), []).append(speed)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        peer = max(value for name, value in medians.items() if name != "ours")
        figures[title] = {"medians": medians, "ratio": medians["ours"] / peer, "all": speeds}
        if title.startswith("decode"):
            figures[title]["bytes_per_token"] = bytes_per_token(workers["ours"], request)
        print(f"  {path.name}: {title}: {figures[title]['ratio']:.2f}", file=sys.stderr)
    memory = workers["ours"].ask(do="report")
    for worker in workers.values():
        worker.close()
    return {"model": path.name, "file_bytes": path.stat().st_size, "figures": figures, **memory}


def bytes_per_token(worker: Worker, request: dict[str, Any]) -> float:
    """Weight and KV bytes that our engine counts for a decode step of this request."""
    before = worker.ask(do="report")
    worker.ask(**request, variant="")
    after = worker.ask(do="report")
    return (after["decode_bytes"] - before["decode_bytes"]) / (after["n_decode"] - before["n_decode"])


def table(results: list[dict[str, Any]], bandwidth: float, n_threads: int) -> str:
    lines = [
        f"{n_threads} threads, read bandwidth {bandwidth:.1f} GB/s. tokens/s, median.",
        "",
        "| model | | fasa_py | peer, flash off | peer, flash on | ratio | of bandwidth |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        for title, figure in result["figures"].items():
            m = figure["medians"]
            share = figure.get("bytes_per_token", 0) * m["ours"] / (bandwidth * 1e9)
            cells = [m["ours"], m["peer flash off"], m["peer flash on"], figure["ratio"]]
            numbers = " | ".join(f"{value:.2f}" for value in cells)
            lines.append(f"| {result['model']} | {title} | {numbers} | {f'{share:.0%}' if share else ''} |")
    lines += ["", "| model | file MB | KV MB | our peak MB | above file + KV |", "| --- | ---: | ---: | ---: | ---: |"]
    for result in results:
        file, kv, peak = (result[key] / 1e6 for key in ("file_bytes", "kv_bytes", "peak_bytes"))
        lines.append(f"| {result['model']} | {file:.0f} | {kv:.0f} | {peak:.0f} | {peak - file - kv:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="tokens decoded in one measurement")
    parser.add_argument("--peer", type=Path, default=REPOSITORY / "build" / "peer-venv" / "bin" / "python")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "side_by_side.json")
    arguments = parser.parse_args()
    if not arguments.peer.exists():
        parser.error(f"{arguments.peer} does not exist: run python bench/peer.py first")
    bandwidth = read_bandwidth(arguments.threads)
    results = [
        compare(path, arguments.peer, arguments.threads, arguments.repeats, arguments.tokens)
        for path in arguments.models
    ]
    report = {"threads": arguments.threads, "read_bandwidth_gb_s": bandwidth, "models": results}
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="ascii")
    print(table(results, bandwidth, arguments.threads))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(main())
