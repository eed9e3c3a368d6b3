"""How far a method's predictions are from dense attention's, step by step over the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def log_softmax(logits: Floats) -> npt.NDArray[np.float32]:
    """Natural log probabilities, float32 ``(n_vocab,)``."""
    shifted = logits - logits.max()
    return (shifted - np.log(np.exp(shifted).sum(dtype=np.float64))).astype(np.float32)


def kl_divergence(logp: Floats, logq: Floats) -> float:
    """``KL(p || q)`` in nats of two rows of log probabilities; not below 0, whatever rounding does."""
    return max(0.0, float(np.sum(np.exp(logp, dtype=np.float64) * (logp.astype(np.float64) - logq))))


class Trace:
    """What one method predicted before each token of a given text.

    :param tokens: the text
    :param dense: log probabilities of dense attention ``(n, n_vocab)`` to compare with; None: nothing to compare with
    :param keep: where to store this method's own log probabilities ``(n, n_vocab)``; None: nowhere
    """

    def __init__(self, tokens: Sequence[int], dense: Floats | None = None, keep: Floats | None = None) -> None:
        self._tokens = tokens
        self._dense, self._keep = dense, keep
        n = len(tokens)
        self.logp = np.empty(n)  # of the given tokens
        self.best = np.empty(n, np.int64)  # most likely token
        self.kl = np.empty(n)
        self.agrees = np.empty(n, bool)  # the most likely token is dense attention's
        self._n = 0

    def add(self, logits: Floats) -> None:
        """The logits ``(n_vocab,)`` before the next token."""
        i = self._n
        row = log_softmax(logits)
        self.logp[i] = row[self._tokens[i]]
        self.best[i] = logits.argmax()
        if self._keep is not None:
            self._keep[i] = row
        if self._dense is not None:
            self.kl[i] = kl_divergence(self._dense[i], row)
            self.agrees[i] = self.best[i] == self._dense[i].argmax()
        self._n += 1

    def compared(self) -> dict[str, float]:
        """Mean KL divergence and share of agreement; nothing when there was nothing to compare with."""
        if self._dense is None:
            return {}
        return {"kl": float(self.kl.mean()), "agree": float(self.agrees.mean())}
