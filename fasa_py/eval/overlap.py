"""How much of a selection stays the same when dominant keys are stored in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..method import Method
from ..model import ModelInfo
from .inside import Tap

Positions = npt.NDArray[np.int32]


@dataclass
class Choices:
    """The lists of recorded steps: every set's positions in each sparse layer, and how many there were."""

    lists: list[tuple[int, Positions]] = field(default_factory=list)  # cached positions, those attended to

    def add(self, tap: Tap, info: ModelInfo) -> None:
        """All steps that were recorded; layers that attended to everything have no lists."""
        for step in range(tap.n_steps):
            for layer in range(info.n_layer):
                seen = tap.read(step, layer)
                self.lists += [(seen.n_pos, positions) for positions in seen.positions]


def shares(ours: Choices, theirs: Choices, n_sink: int, n_recent: int) -> Sequence[float]:
    """List by list, how much of ours theirs has too, but for the first n_sink and the last n_recent positions.

    :raises ValueError: the lists are not of the same steps
    """
    found = []
    for (n_pos, a), (_, b) in zip(ours.lists, theirs.lists, strict=True):
        free = a[(a >= n_sink) & (a < n_pos - n_recent)]
        if len(free):
            found.append(float(np.isin(free, b, assume_unique=True).mean()))
    return found


def overlap(ours: Choices, theirs: Choices, method: Method) -> dict[str, float]:
    """``overlap``: the mean share of positions that both chose; ``overlap_free``: of those that were not forced.

    :raises ValueError: the lists are not of the same steps
    """
    if not ours.lists:
        return {}
    everything = shares(ours, theirs, 0, 0)
    free = shares(ours, theirs, method.n_sink, method.n_recent)
    return {"overlap": float(np.mean(everything)), "overlap_free": float(np.mean(free)) if free else 1.0}
