"""A conversation known in part goes on as if it were processed afresh, under every method."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import each_device

from fasa_py import Completion, Llama
from fasa_py.method import Method, supported_methods

pytestmark = each_device

ALL = [(7 * i) % 250 for i in range(150)]
# A prompt before, what then comes, and how much of it is reused by methods that observe nothing.
REUSE = {
    "repeated": (ALL, ALL, 140),
    "continued": (ALL[:140], ALL, 140),
    "cut": (ALL, [*ALL[:140], 3], 131),
    "branched": (ALL, [*ALL[:100], *ALL[20:60]], 100),
    "another beginning": (ALL, ALL[5:], 0),
}


def sparse_llama(path: Path, name: str, **options: Any) -> Llama:
    """A fresh object whose method engages from 24 tokens on."""
    method = Method(name, n_fac=24, n_tip=2, n_sink=2, n_recent=4, dense_layers=0, dense_below=0)
    with Llama(path, n_threads=1) as llm:
        shape = (llm.info.n_layer, llm.info.n_head, llm.info.head_dim // 2)
    table = SimpleNamespace(ca=np.random.default_rng(1).random(shape), order=None)
    return Llama(path, n_threads=1, method=method, table=table, **options)


def greedy(llm: Llama, prompt: list[int]) -> Completion:
    return llm.generate(prompt, stream=False, max_tokens=12, temperature=0, logprobs=0, logit_bias={258: -math.inf})


def answers(result: Completion) -> list[tuple[int, float | None]]:
    assert result.logprobs is not None and len(result.logprobs) == 12
    return [(entry.token, entry.logprob) for entry in result.logprobs]


def most_reused(name: str, n_prompt: int) -> int:
    return {"snapkv": n_prompt - 32, "rkv": n_prompt - 32, "h2o": 0}.get(name, n_prompt)


@pytest.mark.parametrize("case", REUSE)
@pytest.mark.parametrize("name", supported_methods())
def test_a_prompt_known_in_part_is_answered_as_afresh(tiny_path: Path, name: str, case: str) -> None:
    before, prompt, n_reused = REUSE[case]
    with sparse_llama(tiny_path, name) as llm:
        expected = greedy(llm, prompt)
    with sparse_llama(tiny_path, name) as llm:
        greedy(llm, before)
        result = greedy(llm, prompt)
    assert answers(result) == answers(expected)
    assert result.usage.reused_tokens == min(n_reused, most_reused(name, len(prompt)))
    assert (result.sparsity.layers_sparse > 0) == (name != "full")


@pytest.mark.parametrize("prompt", [ALL, [*ALL[:120], 3], [*ALL, *ALL[:40]]], ids=["whole", "cut", "longer"])
@pytest.mark.parametrize("name", supported_methods())
def test_a_loaded_conversation_goes_on_as_afresh(tiny_path: Path, tmp_path: Path, name: str, prompt: list[int]) -> None:
    with sparse_llama(tiny_path, name) as llm:
        llm.generate(ALL, max_tokens=0)
        llm.save_state(tmp_path / "state")
        llm.reset()
        expected = greedy(llm, prompt)
    with sparse_llama(tiny_path, name) as llm:
        greedy(llm, ALL[3:])
        llm.load_state(tmp_path / "state")
        result = greedy(llm, prompt)
        assert (result.usage.reused_tokens > 0) == (name != "h2o")
    assert answers(result) == answers(expected)


@pytest.mark.parametrize("name", supported_methods())
def test_a_chat_goes_on_under_every_method(tiny_path: Path, name: str) -> None:
    """After an answer, whose keys decoding rounded: what comes may differ a little, but it comes, turn after turn."""
    with sparse_llama(tiny_path, name) as llm:
        history = ALL[:60]
        for _ in range(3):
            result = greedy(llm, history)
            assert result.sparsity.n_steps == 11
            history = [*history, *result.tokens, 1, 2, 3]


@pytest.mark.parametrize("name", supported_methods())
def test_a_method_set_later_answers_as_afresh(tiny_path: Path, name: str) -> None:
    with sparse_llama(tiny_path, name) as llm:
        method, expected = llm.method, greedy(llm, ALL)
    with sparse_llama(tiny_path, "full") as llm:
        greedy(llm, ALL)
        llm.set_method(method)
        result = greedy(llm, ALL)
    for ours, theirs in zip(answers(result), answers(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)  # fasa's own cache has its keys in another order
    assert result.usage.reused_tokens == min(140, most_reused(name, len(ALL)))


def test_several_conversations_under_a_method_that_observes(tiny_path: Path) -> None:
    a, b = ALL[:100], ALL[10:110]
    with sparse_llama(tiny_path, "snapkv", n_seq=2) as llm:
        first = [answers(greedy(llm, prompt)) for prompt in (a, b)]
        again = [greedy(llm, prompt) for prompt in (a, b)]
    assert [answers(result) for result in again] == first
    assert [result.usage.reused_tokens for result in again] == [68, 68]
