"""What decoding should reach on desktop cards: a prediction from bytes and measured costs, not a measurement.

    python bench/predict_cards.py [--depth 131072]

Llama-3.1-8B's shape, Q4_K_M, FASA with no dense layer, 16 of 64 chunks, 256 positions for each of 8 KV heads. A step
takes the bytes that it reads from the card's memory at 90 % of the memory's bandwidth, FIXED_S of what is not reading
(what a step at an empty context takes on an H200 beyond its bytes), and its rows from host memory at PCIE_SHARE of the
bus, which is what an H200 reached on PCIe 5 while it remembered the rows' pages. Rows found in the cache on the device
do not cross the bus: FOUND of them, as on the text of novels at 16,384 positions (bench/gpu_fidelity.py).
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

N_LAYER, N_HEAD_KV, HEAD_DIM, N_FAC, N_DOM = 32, 8, 128, 256, 32
WEIGHT_BYTES = 4_620_607_744  # read by a step, without the embedding's other rows
DOM_BYTES = {"f16": 2 * N_DOM, "int8": N_DOM + 2, "q4": N_DOM // 2 + 2}  # of a position and KV head
ROW_BYTES = {"f16": 2 * (2 * HEAD_DIM - N_DOM), "int8": 4 * HEAD_DIM, "q4": 4 * HEAD_DIM}
MEMORY_SHARE, PCIE_SHARE, FIXED_S, FOUND = 0.9, 0.66, 0.7e-3, 0.83


class Card(NamedTuple):
    name: str
    gib: int
    gb_s: float  # of its memory
    pcie_gb_s: float  # one way


CARDS = [
    Card("RTX 4060", 8, 272, 15.8),
    Card("RTX 3060", 12, 360, 31.5),
    Card("RTX 4070", 12, 504, 31.5),
    Card("RTX 4060 Ti", 16, 288, 15.8),
    Card("RTX 4080", 16, 717, 31.5),
    Card("RTX 3090", 24, 936, 31.5),
    Card("RTX 4090", 24, 1008, 31.5),
]


def step_s(card: Card, depth: int, k_dom: str | None, found: float = 1.0) -> float:
    """Seconds of a step; k_dom None: full attention, everything on the card; found: rows that do not cross the bus."""
    n_head = N_LAYER * N_HEAD_KV
    if k_dom is None:
        n_bytes, n_crossing = depth * n_head * 4 * HEAD_DIM, 0.0
    else:
        n_bytes = n_head * (depth * DOM_BYTES[k_dom] + N_FAC * ROW_BYTES[k_dom])
        n_crossing = (1 - found) * n_head * N_FAC * ROW_BYTES[k_dom]
    memory_s = (WEIGHT_BYTES + n_bytes) / (MEMORY_SHARE * card.gb_s * 1e9)
    return memory_s + n_crossing / (PCIE_SHARE * card.pcie_gb_s * 1e9) + FIXED_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=131072)
    depth = parser.parse_args().depth
    print("| card | FASA-M, dominant keys f16 | 8 bits | 4 bits | FASA-C, if it fits | full attention, if it fits |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for card in CARDS:
        m = [
            f"{1 / step_s(card, depth, k_dom, 0):.0f} to {1 / step_s(card, depth, k_dom, FOUND):.0f}"
            for k_dom in DOM_BYTES
        ]
        others = [f"{1 / step_s(card, depth, k_dom):.0f}" for k_dom in ("f16", None)]
        print(f"| {card.name}, {card.gib} GB, {card.gb_s:.0f} GB/s | {' | '.join(m + others)} |")


if __name__ == "__main__":
    main()
