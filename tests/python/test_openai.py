"""The OpenAI-shaped dictionaries, as llama-cpp-python users know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasa_py import Llama, UnsupportedError

MESSAGES = [{"role": "user", "content": "What is the sea?"}]


def test_a_completion(demo_llm: Llama) -> None:
    result: Any = demo_llm.create_completion("The sea", max_tokens=5, temperature=0, stop=["\n"])
    assert list(result) == ["id", "object", "created", "model", "choices", "usage"]
    assert result["id"].startswith("cmpl-") and result["object"] == "text_completion"
    assert result["model"] == str(demo_llm.path)
    (choice,) = result["choices"]
    expected = demo_llm.generate("The sea", max_tokens=5, temperature=0, stop=["\n"])
    assert choice == {"text": expected.text, "index": 0, "logprobs": None, "finish_reason": expected.finish_reason}
    usage = result["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert demo_llm("The sea", max_tokens=5, temperature=0)["choices"] == [choice]  # type: ignore[index]


def test_completion_defaults_and_spellings(demo_llm: Llama) -> None:
    result: Any = demo_llm.create_completion([4080, 319], seed=3, logit_bias={"4083": -100})
    assert result["usage"]["completion_tokens"] == 16
    banned: Any = demo_llm.create_completion("The sea", max_tokens=3, temperature=0, logit_bias={"319": -100}, top_k=-1)
    assert " was" not in banned["choices"][0]["text"]
    named: Any = demo_llm.create_completion("The sea", max_tokens=1, model="my-model", seed=-1)
    assert named["model"] == "my-model"


def test_completion_chunks(demo_llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "logprobs": 2, "echo": True}
    whole: Any = demo_llm.create_completion("The sea", **options)
    chunks: list[Any] = list(demo_llm.create_completion("The sea", stream=True, **options))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1]["choices"][0]["text"] == ""
    for key in ("tokens", "text_offset"):
        parts = [value for chunk in chunks[:-1] for value in chunk["choices"][0]["logprobs"][key]]
        assert parts == whole["choices"][0]["logprobs"][key]


def test_completion_logprobs(demo_llm: Llama) -> None:
    result: Any = demo_llm.create_completion("The sea", max_tokens=4, temperature=0, logprobs=2, echo=True)
    text, logprobs = result["choices"][0]["text"], result["choices"][0]["logprobs"]
    assert list(logprobs) == ["tokens", "text_offset", "token_logprobs", "top_logprobs"]
    assert {len(values) for values in logprobs.values()} == {7}  # BOS, two words, four new tokens
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for token, offset, logprob, top in zip(*(values[1:] for values in logprobs.values()), strict=True):
        assert text[offset : offset + len(token)] == token
        assert logprob <= 0
        assert top[token] == logprob and 2 <= len(top) <= 3
    best = [max(top, key=top.get) for top in logprobs["top_logprobs"][3:]]
    assert best == logprobs["tokens"][3:]


def test_scoring_a_text_without_generating(tiny_llm: Llama) -> None:
    """max_tokens of 0 or below means no limit in llama-cpp-python; echo alone scores in generate."""
    result = tiny_llm.generate("abc", max_tokens=0, echo=True, logprobs=0)
    assert (result.text, result.tokens) == ("abc", [])
    assert result.logprobs is not None and len(result.logprobs) == 3
    unlimited: Any = tiny_llm.create_completion("abc", max_tokens=-1, logit_bias={258: -1000})
    assert unlimited["usage"]["total_tokens"] == tiny_llm.n_ctx + 1


def test_a_chat_completion(demo_llm: Llama) -> None:
    result: Any = demo_llm.create_chat_completion(
        MESSAGES,
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "text"},
        tools=None,
    )
    assert result["id"].startswith("chatcmpl-") and result["object"] == "chat.completion"
    (choice,) = result["choices"]
    assert list(choice) == ["index", "message", "logprobs", "finish_reason"]
    expected = demo_llm.chat(MESSAGES, max_tokens=5, temperature=0)
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert len(choice["logprobs"]["content"]) == 5
    for entry in choice["logprobs"]["content"]:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # greedy
        assert len(entry["top_logprobs"]) == 2


def test_chat_completion_chunks(demo_llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    whole: Any = demo_llm.create_chat_completion(MESSAGES, **options)
    chunks: list[Any] = list(demo_llm.create_chat_completion(MESSAGES, stream=True, **options))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_of_chunks_that_is_closed_frees_the_model(demo_llm: Llama) -> None:
    chunks: Any = demo_llm.create_chat_completion(MESSAGES, stream=True)
    next(chunks), next(chunks)
    chunks.close()
    assert demo_llm.generate("x", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    "option",
    [{"suffix": "end"}, {"grammar": "root ::= x"}, {"mirostat_mode": 2}, {"typical_p": 0.5}, {"n": 2}, {"best_of": 3},
     {"logits_processor": [print]}, {"stopping_criteria": [print]}, {"tfs_z": 0.9}],
)  # fmt: skip
def test_what_completion_does_not_implement_is_refused(demo_llm: Llama, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(option))):
        demo_llm.create_completion("x", **option)


@pytest.mark.parametrize(
    "option",
    [{"tools": [{"type": "function"}]}, {"functions": [{}]}, {"response_format": {"type": "json_object"}},
     {"grammar": "x"}, {"tool_choice": "auto"}, {"n": 2}],
)  # fmt: skip
def test_what_chat_completion_does_not_implement_is_refused(demo_llm: Llama, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(option))):
        demo_llm.create_chat_completion(MESSAGES, **option)


def test_options_that_nobody_knows(demo_llm: Llama, tiny_path: Path) -> None:
    with pytest.raises(TypeError, match="temprature"):
        demo_llm.create_completion("x", temprature=1)
    with pytest.raises(TypeError, match="suffix"):
        demo_llm.create_chat_completion(MESSAGES, suffix="x")
    with pytest.raises(TypeError, match="n_cxt"):
        Llama(tiny_path, n_cxt=5)
    with pytest.raises(ValueError, match="top_logprobs"):
        demo_llm.create_chat_completion(MESSAGES, top_logprobs=2)


def test_llama_cpp_pythons_constructor(tiny_path: Path) -> None:
    llm = Llama(
        model_path=str(tiny_path), n_ctx=0, n_gpu_layers=0, use_mmap=True, logits_all=True, flash_attn=True, seed=1
    )
    assert llm.n_ctx == 256 and llm.info.device.startswith("cpu")
    for option in (
        {"lora_path": "x"},
        {"type_k": 8},
        {"chat_format": "llama-2"},
    ):
        with pytest.raises(UnsupportedError, match=next(iter(option))):
            Llama(tiny_path, **option)
    for seed in (-1, 0xFFFFFFFF):
        llm = Llama(tiny_path, seed=seed)
        assert llm.generate("x", max_tokens=1).seed != llm.generate("x", max_tokens=1).seed
    with pytest.raises(TypeError, match="model_path"):
        Llama(tiny_path, model_path=tiny_path)


def test_options_that_only_matter_for_speed_are_noted(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"n_gpu_layers": -1, "n_threads_batch": 4, "use_mmap": False, "use_mlock": True}
    llm = Llama(tiny_path, **options)
    assert llm.info.device.startswith("cpu")
    notes = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [note.split("=")[0] for note in notes] == list(options)
    caplog.clear()
    Llama(tiny_path, n_gpu_layers=0, n_threads_batch=None, use_mmap=True, use_mlock=False, chat_format=None)
    assert "has no effect" not in caplog.text


def test_a_chat_format_gives_way_to_the_files_template(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Llama(n_ctx=100, chat_format="chatml") as llm:  # the demo model has a template
        assert "chat_format='chatml' has no effect" in caplog.text
        assert llm.chat(MESSAGES, max_tokens=1).usage.completion_tokens == 1
    with pytest.raises(UnsupportedError, match=r"chat_format='chatml'.*chat_template"):
        Llama(tiny_path, chat_format="chatml")


def test_top_k_and_logit_bias_are_checked_everywhere(tiny_llm: Llama) -> None:
    calls: tuple[Any, ...] = (tiny_llm.generate, tiny_llm.create_completion)
    for call in calls:
        with pytest.raises(ValueError, match="top_k"):
            call("x", top_k=-2)
        for bias in (10**400, 1e39, float("nan"), float("inf"), "1", None, True):
            with pytest.raises(ValueError, match=r"logit_bias.* of token 5"):
                call("x", logit_bias={5: bias})
        for token in (270, -1, 2**70, 1.5, "x", None):
            with pytest.raises(ValueError, match="logit_bias: a token id"):
                call("x", logit_bias={token: 1.0})
    same = [tiny_llm.generate("x", max_tokens=8, seed=1, top_k=k, temperature=3).tokens for k in (0, -1)]
    assert same[0] == same[1]
