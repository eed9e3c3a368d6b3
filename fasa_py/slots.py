"""Which sequence of the context a prompt goes to: the one that already holds most of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ._native import lib
from .model import Context

# Of a prompt that is known already, the last few tokens are processed again: for the logits, and as many as make the
# engine take the kernels of a batch, whose sums round as they did the first time. So a prompt seen before gives the
# same bits as a fresh one. Tokens that went through one by one (an answer) or very few at once (a tiny prompt) do not:
# their keys and values were rounded as decoding rounds, and where they are reused, logits may differ a little from
# those of a fresh run.
_N_AGAIN: int = lib.FASA_ROWS_ALIKE


def common_prefix(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many tokens two prompts share from the start."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


class Slots:
    """The sequences of a context, the least recently used first.

    With several (``n_seq``), as many conversations stay warm.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._order = list(range(context.n_seq))

    @property
    def current(self) -> int:
        """The sequence used last."""
        return self._order[-1]

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A sequence that holds the first n tokens of the prompt, and n; some tokens are always left to process.

        Left are all that the method in use has to observe: of what a sequence holds, nobody remembers the queries.
        A sequence is cut back only when it reuses at least as much as it throws away; else the one that was
        used least recently gives way.
        """
        tokens = np.asarray(prompt, dtype=np.int32)
        n_again = max(_N_AGAIN, self._context.method.n_observed(len(tokens)))
        most = max(len(tokens) - n_again, 0)
        shared = {seq: min(common_prefix(self._context.tokens(seq), tokens), most) for seq in self._order}
        seq = max(reversed(self._order), key=shared.__getitem__)
        if self._context.length(seq) - shared[seq] > shared[seq]:
            seq = self._order[0]
        self._context.truncate(seq, shared[seq])
        self._use(seq)
        return seq, shared[seq]

    def take_empty(self) -> int:
        """The least recently used sequence, emptied."""
        seq = self._order[0]
        self._context.truncate(seq, 0)
        self._use(seq)
        return seq

    def reset(self) -> None:
        """Forget everything."""
        for seq in self._order:
            self._context.truncate(seq, 0)

    def _use(self, seq: int) -> None:
        self._order.remove(seq)
        self._order.append(seq)
