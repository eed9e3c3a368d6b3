"""Sampling parameters and log probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fasa_py.sampling import SamplingParams, log_softmax, top_tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
        ("temperature", 1e39), ("top_k", -2), ("top_k", 2.5), ("top_k", True), ("top_p", 0), ("top_p", 1.01),
        ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5), ("repeat_penalty", 0), ("repeat_penalty", -1),
        ("presence_penalty", math.inf), ("frequency_penalty", math.nan), ("seed", -1), ("seed", 2**64), ("seed", 1.5),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{"seed": 1, name: value})


@pytest.mark.parametrize("bias", [{-1: 1.0}, {100: 1.0}, {"5": 1.0}, {5: math.nan}, {5: math.inf}, {5: "x"}])
def test_a_wrong_logit_bias_is_refused(bias: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match="logit_bias"):
        SamplingParams(seed=1, logit_bias=bias).check_bias(100)


def test_the_limits_themselves_are_allowed() -> None:
    params = SamplingParams(seed=2**64 - 1, temperature=0, top_k=0, top_p=1, min_p=1, logit_bias={99: -math.inf})
    params.check_bias(100)
    assert params.seed == 2**64 - 1


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_log_softmax_and_the_top_tokens(n: int) -> None:
    logits = np.random.default_rng(n).normal(0, 30, n).astype(np.float32)
    logs = log_softmax(logits)
    assert np.exp(logs).sum() == pytest.approx(1)
    assert np.allclose(logs - logs[0], logits.astype(np.float64) - logits[0])
    assert top_tokens(logs, 5) == np.argsort(-logs, kind="stable")[:5].tolist()
    assert top_tokens(logs, 0) == []


def test_equal_logits_are_ordered_by_id() -> None:
    assert top_tokens(log_softmax(np.array([1, 3, 3, 2, 3], np.float32)), 2) == [1, 2]
