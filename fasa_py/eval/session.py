"""One prompt, many methods: the prompt is processed once, and every method starts from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple

import numpy as np
import numpy.typing as npt

from ..errors import FasaError
from ..method import Method
from ..model import Context, Progress, Stats

_SEQ = 0


class NotEngagedError(FasaError, RuntimeError):
    """A sparse method attended to everything: its results would say nothing about it."""


class Session:
    """A prompt in a context, to be continued by one method after another.

    Prefill is dense under every method, so all of them start from the same cache and the same logits; what they differ
    in are the decode steps. Methods that look at the prompt's queries process as much of it again as they need.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._method = context.method
        self._before = context.stats()
        self._prompt: list[int] = []
        self._prompt_logits: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def prefill(self, prompt: Sequence[int], progress: Progress | None = None) -> None:
        """Replace what the session holds by this prompt."""
        self._prompt = list(prompt)
        self._switch(Method("full"), 0)
        self.context.decode(_SEQ, self._prompt, progress)
        self._prompt_logits = self.context.logits.copy()

    def _switch(self, method: Method, n_keep: int) -> None:
        self.context.truncate(_SEQ, n_keep)
        self.context.set_method(method)
        self._method = method

    def engage(self, method: Method) -> npt.NDArray[np.float32]:
        """Back to the end of the prompt, from now on with this method; the prompt's logits, ``(n_vocab,)``."""
        n = len(self._prompt)
        self._switch(method, n)
        again = method.n_observed(n)
        if again:
            self.context.truncate(_SEQ, n - again)
            self.context.decode(_SEQ, self._prompt[n - again :])
        self._before = self.context.stats()
        return self._prompt_logits

    def forced(self, method: Method, tokens: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits ``(n_vocab,)`` before each of the given tokens, which are decoded one by one: ``len(tokens)`` of them.

        The first are the prompt's own. A view, valid until the next one is asked for.
        """
        yield self.engage(method)
        for token in tokens[:-1]:
            self.context.decode(_SEQ, [token])
            yield self.context.logits

    def greedy(self, method: Method, max_tokens: int, stop_ids: frozenset[int]) -> list[int]:
        """The most likely continuation of at most max_tokens, up to one of stop_ids (not included)."""
        out: list[int] = []
        logits = self.engage(method)
        while len(out) < max_tokens:
            token = int(logits.argmax())
            if token in stop_ids:
                break
            out.append(token)
            if len(out) < max_tokens:
                self.context.decode(_SEQ, [token])
                logits = self.context.logits
        return out

    def stats(self, must_engage: bool = True) -> Stats:
        """What was done since :meth:`engage`.

        :raises NotEngagedError: a sparse method decoded, and no layer was sparse (if it must_engage)
        """
        now = self.context.stats()
        stats = Stats(*(b - a for a, b in zip(astuple(self._before), astuple(now), strict=True)))
        if must_engage and self._method.name != "full" and stats.n_decode > 0 and stats.layers_sparse == 0:
            raise NotEngagedError(
                f"the method {self._method} attended to all {self.context.length(_SEQ)} tokens in {stats.n_decode} "
                "steps: the context must be longer than n_fac and dense_below, and dense_layers less than the layers"
            )
        return stats
