"""Token recall [FASA §6, compound CA]: how many of a head's best-scoring positions a method attends to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import Context, ModelInfo
from .inside import Tap, read_keys


@dataclass
class Recall:
    """Sums over query heads of sparse layers."""

    n: int = 0
    hits: float = 0.0  # share of the true top-K that was attended to
    mass: float = 0.0  # share of the softmax that the attended positions hold

    def add(
        self, q: npt.NDArray[np.float32], keys: npt.NDArray[np.float32], chosen: npt.NDArray[np.int32], k: int
    ) -> None:
        """One query head: q ``(head_dim,)``, keys ``(n_pos, head_dim)``, chosen positions."""
        scores = keys @ q
        top = np.argpartition(-scores, k - 1)[:k]
        weights = np.exp((scores - scores.max()) / np.sqrt(len(q)))
        self.n += 1
        self.hits += np.isin(top, chosen, assume_unique=True).mean()
        self.mass += float(weights[chosen].sum() / weights.sum())

    def result(self) -> dict[str, float]:
        return {"recall": self.hits / self.n, "mass": self.mass / self.n} if self.n else {}


def add_tapped_steps(recall: Recall, tap: Tap, context: Context, info: ModelInfo, k: int) -> None:
    """All steps that were recorded; layers that attended to everything are passed over."""
    group = info.n_head // info.n_head_kv
    for step in range(tap.n_steps):
        for layer in range(info.n_layer):
            seen = tap.read(step, layer)
            if not seen.positions or seen.n_pos <= k:
                continue
            heads_per_set = info.n_head // len(seen.positions)
            for head_kv in range(info.n_head_kv):
                keys = read_keys(context, info, seen.seq, layer, head_kv, seen.n_pos)
                for head in range(head_kv * group, (head_kv + 1) * group):
                    recall.add(seen.q[head], keys, seen.positions[head // heads_per_set], k)
