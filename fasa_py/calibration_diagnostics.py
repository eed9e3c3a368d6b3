"""How far a calibration can be relied on: overlap between samples, accuracy of prediction by attention quintile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ._native import lib
from .calibration_native import best_by_ca, native_calibrate
from .eval.inside import read_keys, read_tapped
from .model import Context, ModelInfo

_N_STEPS = 16  # recorded steps that accuracy is measured at
_QUINTILES = 5


@dataclass(frozen=True)
class Diagnostics:
    """Shares, 0 to 1. Accuracy is that of KV heads' sets, over the true best K positions of their query heads."""

    n_tip: int
    overlap: float | None  # of the dominant sets (by CA) of two samples, mean over pairs; None: one sample
    dominant: npt.NDArray[np.float64]  # (5,), by attention, highest first: found by the dominant chunks
    others: npt.NDArray[np.float64]  # the same of as many other chunks, drawn at random

    def lines(self) -> list[str]:
        """The figures as text."""

        def shares(values: npt.NDArray[np.float64]) -> str:
            return " / ".join(f"{value:.0%}" for value in values)

        overlap = "one sample, none to compare with" if self.overlap is None else f"{self.overlap:.0%}"
        return [
            f"overlap of the {self.n_tip} dominant chunks between samples (by CA): {overlap}",
            "positions found, by fifths of the true best, highest attention first: "
            f"{shares(self.dominant)} by the dominant chunks, {shares(self.others)} by as many others",
        ]


def measure(
    context: Context,
    info: ModelInfo,
    ca: npt.NDArray[np.float32],
    order: npt.NDArray[np.uint16] | None,
    k: int,
    n_steps: int,
    n_samples: int,
    n_tip: int | None,
) -> Diagnostics:
    """From a context whose tap still holds the calibration's steps; order None: dominant chunks by CA."""
    n_chunk = ca.shape[2]
    n_tip = n_tip or max(1, n_chunk // 4)
    overlap = _overlap(context, info, k, n_steps, n_samples, n_tip) if n_samples > 1 else None
    rng = np.random.default_rng(0)
    dominant, others = np.zeros(_QUINTILES), np.zeros(_QUINTILES)
    steps = _long_steps(context, info, k)
    for layer in range(info.n_layer):
        for head_kv in range(info.n_head_kv):
            ranked = best_by_ca(ca, layer, head_kv, info.n_head_kv) if order is None else order[layer, head_kv]
            sets = [ranked[:n_tip], rng.permutation(ranked[n_tip:])[:n_tip]]
            found = _accuracy(context, info, layer, head_kv, [_dims(info, chunks) for chunks in sets], k, steps)
            dominant, others = dominant + found[0], others + found[1]
    n = info.n_layer * info.n_head_kv
    return Diagnostics(n_tip, overlap, dominant / n, others / n)


def _overlap(context: Context, info: ModelInfo, k: int, n_steps: int, n_samples: int, n_tip: int) -> float:
    sets = []
    for seq in range(n_samples):
        ca = native_calibrate(context, info, k, k, 0, 0, by_mass=False, seq=seq, max_steps=n_steps)[0]
        heads = np.ndindex(info.n_layer, info.n_head_kv)
        sets.append([set(best_by_ca(ca, layer, head, info.n_head_kv)[:n_tip].tolist()) for layer, head in heads])
    shares = [len(a & b) / n_tip for one, other in combinations(sets, 2) for a, b in zip(one, other, strict=True)]
    return float(np.mean(shares))


def _long_steps(context: Context, info: ModelInfo, k: int) -> list[int]:
    """Some recorded steps with more than k positions, spread evenly."""
    n = lib.fasa_tap_steps(context._handle)
    long = [step for step in range(n) if read_tapped(context, info, step, 0).n_pos > k]
    return long[:: max(1, len(long) // _N_STEPS)][:_N_STEPS]


def _dims(info: ModelInfo, chunks: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """The file's dims of chunks."""
    half, dims = info.n_rot // 2, []
    for chunk in map(int, chunks):
        if chunk >= half:
            dims += [chunk + half]
        else:
            dims += [2 * chunk, 2 * chunk + 1] if info.rope_layout == "interleaved" else [chunk, chunk + half]
    return np.array(dims, np.intp)


def _accuracy(
    context: Context,
    info: ModelInfo,
    layer: int,
    head_kv: int,
    sets: list[npt.NDArray[np.intp]],
    k: int,
    steps: list[int],
) -> npt.NDArray[np.float64]:
    """Share of each fifth of the true best k that each set of dims finds, mean over heads and steps: (n_set, 5)."""
    group = info.n_head // info.n_head_kv
    found = np.zeros((len(sets), _QUINTILES))
    for step in steps:
        tapped = read_tapped(context, info, step, layer)
        keys = read_keys(context, info, tapped.seq, layer, head_kv, tapped.n_pos)
        queries = tapped.q[head_kv * group : (head_kv + 1) * group]
        chosen = [_best(keys[:, dims] @ queries[:, dims].sum(axis=0), k) for dims in sets]
        for q in queries:
            for fifth, positions in enumerate(np.array_split(_best(keys @ q, k), _QUINTILES)):
                if positions.size > 0:
                    found[:, fifth] += [np.isin(positions, best).mean() for best in chosen]
    return found / (len(steps) * group)


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """The k best positions, best first, the lower one first among equals."""
    return np.argsort(-scores, kind="stable")[:k]
