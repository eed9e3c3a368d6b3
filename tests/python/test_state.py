"""Saved conversations: they go on as if never interrupted; damaged files and those of other models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import each_device
from engine import Engine, Table
from tiny_models import TinyModel, write

from fasa_py import ContextFullError, FormatError, Llama

pytestmark = each_device

PROMPT = [(11 * i) % 250 for i in range(60)]


def test_a_saved_conversation_goes_on(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Llama(tiny_path) as llm:
        first = llm.generate(PROMPT, max_tokens=10, seed=1)
        held = llm.tokens
        llm.save_state(path)
        expected = llm.generate(PROMPT + first.tokens, max_tokens=10, seed=2)
    with Llama(tiny_path) as llm:
        llm.generate("something else", max_tokens=3)
        llm.load_state(str(path))
        assert llm.tokens == held == PROMPT + first.tokens[:-1]
        result = llm.generate(PROMPT + first.tokens, max_tokens=10, seed=2)
    assert result.usage.reused_tokens == expected.usage.reused_tokens >= len(PROMPT)
    assert result.tokens == expected.tokens


@pytest.mark.parametrize("kv", ["device", "split"])
def test_states_of_many_blocks(kv: str, tmp_path: Path) -> None:
    """Planes of more than one block of the writer, and none of them whole blocks."""
    n = 4500
    model = TinyModel("qwen3", n_layer=2, head_dim=256, n_head=1, n_head_kv=1, n_rot=256, n_ctx=8192)
    path = write(tmp_path / "tiny.gguf", model)
    table = Table.random(2, 1, 1, 128)
    prompt = [(7 * i * i + 3 * i) % 131 for i in range(n)]
    options: dict[str, Any] = {"n_ctx": n + 2, "method": {"method": "fasa", "n_fac": 64}, "table": table, "kv": kv}
    with Engine(path, **options) as engine:
        engine.decode(prompt)
        engine.save(tmp_path / "state")
        rows = [engine.kv(layer, 0) for layer in range(2)]
        expected = engine.decode([5])
    assert (tmp_path / "state").stat().st_size > 4 * n * 2 * 256
    with Engine(path, **options) as engine:
        engine.decode([9, 9, 9])
        engine.load(tmp_path / "state")
        assert engine.length() == n
        for layer in range(2):
            assert all(map(np.array_equal, engine.kv(layer, 0), rows[layer]))
        engine.save(tmp_path / "again")
        assert np.array_equal(engine.decode([5]), expected)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "state").read_bytes()


def test_an_empty_conversation_can_be_saved(tiny_llm: Llama, tmp_path: Path) -> None:
    tiny_llm.save_state(tmp_path / "empty")
    tiny_llm.generate(PROMPT, max_tokens=1)
    tiny_llm.load_state(tmp_path / "empty")
    assert tiny_llm.tokens == []


def test_a_damaged_file_is_refused_and_changes_nothing(tiny_llm: Llama, tmp_path: Path) -> None:
    path = tmp_path / "state"
    logits = tiny_llm.logits([5, 6, 7])
    tiny_llm.save_state(path)
    good = path.read_bytes()
    tiny_llm.logits(PROMPT)
    expected = tiny_llm.logits(PROMPT)

    def refused(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises((FormatError, ContextFullError)):
            tiny_llm.load_state(path)

    for n in range(len(good)):  # cut off anywhere
        refused(good[:n])
    for i in range(len(good)):  # any byte flipped
        refused(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :])
    refused(good + b"\0")
    refused(good + good)
    refused(b"\xff" * len(good))
    assert tiny_llm.tokens == PROMPT
    assert np.array_equal(tiny_llm.logits(PROMPT), expected)
    path.write_bytes(good)
    tiny_llm.load_state(path)
    assert tiny_llm.tokens == [5, 6, 7]
    assert np.array_equal(tiny_llm.logits([5, 6, 7]), logits)


def test_the_state_of_another_model_is_refused(tiny_llm: Llama, tmp_path: Path) -> None:
    same_shapes = write(tmp_path / "other.gguf", TinyModel(n_vocab=270, vocabulary=True, seed=6))
    other_shapes = write(tmp_path / "larger.gguf", TinyModel(n_vocab=270, vocabulary=True, seed=5, n_layer=3))
    for model in (same_shapes, other_shapes):
        with Llama(model) as llm:
            llm.logits(PROMPT)
            llm.save_state(tmp_path / "state")
        with pytest.raises(FormatError, match="another model"):
            tiny_llm.load_state(tmp_path / "state")
    assert tiny_llm.tokens == []


def test_a_state_larger_than_the_context(tiny_path: Path, tmp_path: Path) -> None:
    with Llama(tiny_path) as llm:
        llm.logits(PROMPT)
        llm.save_state(tmp_path / "state")
    with Llama(tiny_path, n_ctx=59) as llm, pytest.raises(ContextFullError, match=r"60.*59"):
        llm.load_state(tmp_path / "state")


def test_paths_that_do_not_work(tiny_llm: Llama, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        tiny_llm.load_state(tmp_path / "missing")
    with pytest.raises(OSError, match="nowhere"):
        tiny_llm.save_state(tmp_path / "nowhere" / "state")
    with pytest.raises(ValueError, match="zero byte"):
        tiny_llm.save_state("a\0b")
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "kept.partial").mkdir()
    with pytest.raises(OSError, match="kept"):
        tiny_llm.save_state(tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "kept"
