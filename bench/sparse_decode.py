"""Decode speed at long contexts: our dense and sparse (FASA) attention and llama-cpp-python, interleaved.

    python bench/sparse_decode.py model.gguf [--threads 2] [--depths 1024 4096 8192 16384] [--repeats 3] [--no-peer]

Dense and sparse steps run on the same KV cache, at the shipped defaults. A model without a table gets a made-up one:
that changes which tokens are chosen, not how many bytes are read. The peer runs with flash attention on, and off, which
is faster for decoding on CPUs; its cache repeats the same 256 tokens, and depths are multiples of that.
Every figure is a median, every ratio one of medians of the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import REPOSITORY, Peer, Worker, read_bandwidth, token

METHODS = ("dense", "fasa")
BREAK_EVEN = 512  # tokens from which fasa's steps are sparse
VARIANTS = Peer.variants


class OursSparse:
    """Both methods on one context."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        from fasa_py.gguf import GGUF
        from fasa_py.method import Method
        from fasa_py.model import Context, ContextSettings, Model

        self.methods = {"dense": Method("full"), "fasa": Method("fasa")}
        self.model = Model(GGUF(Path(path)), "cpu", n_threads)
        table = None if self.model.has_table else made_up_table(self.model)
        self.context = Context(self.model, ContextSettings(n_ctx, method=self.methods["fasa"], table=table))

    def fill(self, depth: int) -> None:
        have = self.context.length(0)
        if have > depth:
            self.context.truncate(0, depth)
        elif have < depth:
            self.context.decode(0, [token(i) for i in range(have, depth)])

    def decode(self, depth: int, n: int) -> dict[str, Any]:
        """Steps of both methods take turns, so that noise hits both alike."""
        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        kv_bytes = dict.fromkeys(METHODS, 0)
        layers_sparse = 0
        for i in range(n):
            for name in METHODS:
                self.context.set_method(self.methods[name])
                self.context.truncate(0, depth)
                before, start = self.context.stats(), time.perf_counter()
                self.context.decode(0, [token(depth + i)])
                seconds[name].append(time.perf_counter() - start)
                stats = self.context.stats()
                kv_bytes[name] = stats.key_bytes + stats.value_bytes - before.key_bytes - before.value_bytes
                layers_sparse = stats.layers_sparse - before.layers_sparse
        return {"seconds": seconds, "kv_bytes": kv_bytes, "layers_sparse": layers_sparse}


def made_up_table(model: Any) -> Any:
    """Random but valid."""
    from fasa_py.table import Table

    info = model.info
    n_chunk = info.head_dim - info.n_rot // 2
    random = np.random.default_rng(0)
    ca = random.random((info.n_layer, info.n_head, n_chunk), dtype=np.float32)
    order = random.permuted(np.tile(np.arange(n_chunk, dtype=np.uint16), (info.n_layer, info.n_head_kv, 1)), axis=-1)
    return Table(model, ca, order, None, "mass")


def measure(ours: OursSparse, peer: Worker | None, depth: int, repeats: int, n: int) -> dict[str, Any]:
    ours.fill(depth)
    ours.decode(depth, 4)  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    peer_speed: dict[str, list[float]] = {name: [] for name in VARIANTS}
    result: dict[str, Any] = {}
    for repeat in range(repeats):
        result = ours.decode(depth, n)
        for name in METHODS:
            seconds[name] += result["seconds"][name]
        if peer is not None:
            for name in VARIANTS:
                speed = peer.ask(do="decode", depth=depth, n=n, variant=name, repeat=True)["tokens_per_s"]
                if repeat > 0 or repeats == 1:  # before the first one the cache was filled
                    peer_speed[name].append(speed)
    speeds = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    if depth >= BREAK_EVEN and result["layers_sparse"] == 0:
        raise SystemExit(f"at {depth} tokens no layer was sparse: nothing to compare")
    speeds |= {name: statistics.median(values) for name, values in peer_speed.items() if values}
    return {"depth": depth, "tokens_per_s": speeds, **{key: result[key] for key in ("kv_bytes", "layers_sparse")}}


def table(rows: list[dict[str, Any]], n_bytes: int, bandwidth: float, n_threads: int) -> str:
    lines = [
        f"{n_threads} threads, read bandwidth {bandwidth:.1f} GB/s. Decode, tokens/s, medians.",
        "",
        "| context | sparse layers | peer, flash off | flash on | dense | fasa | fasa / flash off | / flash on "
        "| / dense | KV MB a step, dense | fasa | of bandwidth |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        speed, kv = row["tokens_per_s"], row["kv_bytes"]
        peers = [speed.get(name) for name in VARIANTS]
        share = (n_bytes + kv["fasa"]) * speed["fasa"] / bandwidth / 1e9
        cells = [str(row["depth"]), str(row["layers_sparse"])]
        cells += [f"{x:.2f}" if x else "" for x in (*peers, speed["dense"], speed["fasa"])]
        cells += [f"{speed['fasa'] / x:.2f}" if x else "" for x in (*peers, speed["dense"])]
        cells += [f"{kv['dense'] / 1e6:.1f}", f"{kv['fasa'] / 1e6:.1f}", f"{share:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peer", type=Path, default=REPOSITORY / "build" / "peer-venv" / "bin" / "python")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "sparse_decode.json")
    arguments = parser.parse_args()
    bandwidth = read_bandwidth(arguments.threads)
    n_ctx = max(arguments.depths) + 64
    ours = OursSparse(str(arguments.model), n_ctx, arguments.threads)
    peer = None
    if not arguments.no_peer:
        peer = Worker(arguments.peer, "peer", arguments.model, n_ctx, arguments.threads)
    rows = []
    for depth in sorted(arguments.depths):
        rows.append(measure(ours, peer, depth, arguments.repeats, arguments.tokens))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if peer is not None:
        peer.close()
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps({"read_bandwidth_gb_s": bandwidth, "rows": rows}, indent=1) + "\n")
    print(table(rows, ours.model.info.n_bytes, bandwidth, arguments.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
