"""What decoding should reach on desktop cards: a prediction from bytes and measured costs, not a measurement.

    python bench/predict_cards.py [--depth 131072]

Llama-3.1-8B's shape, Q4_K_M, FASA with no dense layer, 16 of 64 chunks, 256 positions for each of 8 KV heads. A
step takes the bytes that it reads from the card's memory at MEMORY_SHARE of the memory's bandwidth, FIXED_S for
what is not reading (what a step at an empty context takes on an H200 beyond its bytes), and SPARSE_S a sparse
layer, as there, or about twice that before compute capability 9.0, where it is three kernels instead of two
(WITHOUT_CLUSTERS_S, as the engine assumes; not measured). Its rows come from host memory at PCIE_SHARE of the bus,
which is what an H200 reached on PCIe 5 while it remembered the rows' pages, but each takes ROW_S at least, as one
took there whose page had to be found (bench/host_memory.cu). Rows found in the cache on the device do not cross
the bus: FOUND of them, which is what the embedded model found along novels at 16,384 positions
(bench/gpu_fidelity.py); it found more at shorter contexts, and longer ones will find fewer.

What a card's memory cannot hold, by the plan of bench/gpu_models.py with CUDA's own part and FREE_GIB left to
others, is "-". The last row is the GPU that all this comes from, to be held against what was measured there.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

N_LAYER, N_HEAD_KV, HEAD_DIM, N_FAC, N_DOM = 32, 8, 128, 256, 32
WEIGHT_BYTES = 4_620_607_744  # read by a step, without the embedding's other rows
DOM_BYTES = {"f16": 2 * N_DOM, "int8": N_DOM + 2, "q4": N_DOM // 2 + 2}  # of a position and KV head
ROW_BYTES = {"f16": 2 * (2 * HEAD_DIM - N_DOM), "int8": 4 * HEAD_DIM, "q4": 4 * HEAD_DIM}
MEMORY_SHARE, PCIE_SHARE, FIXED_S, FOUND, ROW_S = 0.84, 0.66, 0.7e-3, 0.83, 46e-6 / 2048
SPARSE_S, WITHOUT_CLUSTERS_S = 7.3e-6, 15e-6
OTHER_BYTES = (7406.1 - 2048.8 + 643) * 2**20  # weights, scratch and CUDA's own, as planned
CACHE_ROWS = N_LAYER * N_HEAD_KV * 4 * N_FAC
FREE_GIB = 0.5


class Card(NamedTuple):
    name: str
    gib: int
    gb_s: float  # of its memory
    pcie_gb_s: float  # one way
    sparse_s: float = WITHOUT_CLUSTERS_S


CARDS = [
    Card("RTX 4060", 8, 272, 15.8),
    Card("RTX 3060", 12, 360, 31.5),
    Card("RTX 4070", 12, 504, 31.5),
    Card("RTX 4060 Ti", 16, 288, 15.8),
    Card("RTX 4080", 16, 717, 31.5),
    Card("RTX 3090", 24, 936, 31.5),
    Card("RTX 4090", 24, 1008, 31.5),
    Card("H200", 141, 4800, 63, SPARSE_S),
]


def step_s(card: Card, depth: int, k_dom: str | None, found: float = 1.0) -> float:
    """Seconds of a step; k_dom None: full attention, everything on the card; found: rows that do not cross the bus."""
    n_head = N_LAYER * N_HEAD_KV
    if k_dom is None:
        n_bytes, sparse_s = depth * n_head * 4 * HEAD_DIM, 0.0
    else:
        n_bytes = n_head * (depth * DOM_BYTES[k_dom] + N_FAC * ROW_BYTES[k_dom])
        row_s = max(ROW_BYTES[k_dom] / (PCIE_SHARE * card.pcie_gb_s * 1e9), ROW_S)
        sparse_s = N_LAYER * card.sparse_s + (1 - found) * n_head * N_FAC * row_s
    return (WEIGHT_BYTES + n_bytes) / (MEMORY_SHARE * card.gb_s * 1e9) + sparse_s + FIXED_S


def speed(card: Card, depth: int, k_dom: str | None, found: float, n_bytes: float) -> str:
    """Tokens/s with n_bytes of KV cache on the card, or that it does not fit."""
    fits = OTHER_BYTES + n_bytes <= (card.gib - FREE_GIB) * 2**30
    return f"{1 / step_s(card, depth, k_dom, found):.0f}" if fits else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=131072)
    depth = parser.parse_args().depth
    n_head, whole = N_LAYER * N_HEAD_KV, N_LAYER * N_HEAD_KV * depth * 4 * HEAD_DIM
    print("| card | FASA-M, dominant keys f16 | 8 bits | 4 bits | FASA-C | full attention |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for card in CARDS:
        cells = []
        for k_dom, dom_bytes in DOM_BYTES.items():
            dom = n_head * depth * dom_bytes
            cells.append(
                " / ".join(
                    (
                        speed(card, depth, k_dom, 0, dom),
                        speed(card, depth, k_dom, FOUND, dom + CACHE_ROWS * (ROW_BYTES[k_dom] + 16)),
                    )
                )
            )
        cells += [speed(card, depth, k_dom, 1, whole) for k_dom in ("f16", None)]
        print(f"| {card.name}, {card.gib} GB, {card.gb_s:.0f} GB/s | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
