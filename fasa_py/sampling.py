"""Sampling parameters, checked; log probabilities of tokens from raw logits."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_F32_MAX = float(np.finfo(np.float32).max)  # the engine computes in float32


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. The defaults are llama.cpp's.

    The order is: logit bias, penalties over the last 64 tokens, top-k, top-p, min-p, temperature.

    :raises ValueError: a value out of its range, or NaN
    """

    seed: int
    temperature: float = 0.8  # 0: always the most likely token
    top_k: int = 40  # 0 or -1: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repeat_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None  # token id -> added to its logit; -inf bans it

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, 0, 2**64 - 1)
        whole_number("top_k", self.top_k, -1, 2**31 - 1)
        real_number("temperature", self.temperature, 0.0, _F32_MAX)
        real_number("min_p", self.min_p, 0.0, 1.0)
        real_number("presence_penalty", self.presence_penalty, -_F32_MAX, _F32_MAX)
        real_number("frequency_penalty", self.frequency_penalty, -_F32_MAX, _F32_MAX)
        if real_number("top_p", self.top_p, 0.0, 1.0) == 0:
            raise ValueError("top_p must be above 0 (1 turns it off; temperature=0 gives the most likely token)")
        if real_number("repeat_penalty", self.repeat_penalty, 0.0, _F32_MAX) == 0:
            raise ValueError("repeat_penalty must be above 0 (1 turns it off)")

    def check_bias(self, n_vocab: int) -> None:
        """:raises ValueError: a biased token is not in the vocabulary, or its bias is no float32 number nor -inf"""
        for token, bias in (self.logit_bias or {}).items():
            whole_number("logit_bias: a token id", token, 0, n_vocab - 1)
            if bias != -math.inf:
                real_number(f"logit_bias (-inf bans) of token {token}", bias, -_F32_MAX, _F32_MAX)


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high]; bool is not one."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low} and {high}, not {number}")
    return number


def real_number(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]; bool is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the largest float
        number = math.nan
    if not low <= number <= high:  # also false for NaN
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value!r}")
    return number


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural log probabilities, float64 ``(n_vocab,)``, of raw logits."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def top_tokens(log_probabilities: npt.NDArray[np.float64], n: int) -> list[int]:
    """Ids of the n most likely tokens, the most likely first; equal ones by id."""
    n = min(n, len(log_probabilities))
    if n == 0:
        return []
    threshold = np.partition(log_probabilities, -n)[-n]
    candidates = np.flatnonzero(log_probabilities >= threshold)
    order = np.lexsort((candidates, -log_probabilities[candidates]))
    return candidates[order][:n].tolist()
