"""``fasa_py.Llama``: generation, streaming, reuse of prefixes, odd input."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import each_device
from generating import complete, forced
from tiny_models import TinyModel, byte_vocabulary, write

import fasa_py
from fasa_py import ContextFullError, FasaError, Llama, UnsupportedError
from fasa_py.model import Context, ContextSettings, Model, build_info

EURO = list("€".encode())  # three tokens of the tiny model


# -- what a completion says ----------------------------------------------------------------------------------------


def test_the_demo_model_answers(demo_llm: Llama) -> None:
    text = "The weather was fine. The door code is 48213. The ship sailed on.\n\nWhat is the door code?"
    answer = demo_llm.chat([{"role": "user", "content": text}], temperature=0, max_tokens=40)
    assert "48213" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.usage.total_tokens == len(answer.prompt_tokens) + len(answer.tokens)


def test_a_completion_accounts_for_its_tokens(tiny_llm: Llama) -> None:
    result = complete(tiny_llm, "abc", max_tokens=5, seed=1, logit_bias={258: -math.inf})
    assert result.prompt_tokens == list(b"abc")
    assert len(result.tokens) == 5
    assert result.finish_reason == "length"
    assert result.usage == fasa_py.Usage(prompt_tokens=3, completion_tokens=5, reused_tokens=0)
    assert (result.timings.prefill_tokens, result.timings.decode_tokens) == (3, 4)
    assert result.timings.prefill_tokens_per_s > 0 and result.timings.decode_tokens_per_s > 0
    assert str(result) == result.text
    assert result.logprobs is None


def test_max_tokens_zero_and_none(tiny_llm: Llama) -> None:
    nothing = complete(tiny_llm, "abc", max_tokens=0)
    assert (nothing.text, nothing.tokens, nothing.finish_reason) == ("", [], "length")
    full = complete(tiny_llm, "abc", max_tokens=None, logit_bias={258: -math.inf})
    assert full.finish_reason == "length"
    assert len(full.tokens) == tiny_llm.n_ctx - 3 + 1  # the last token needs no place in the cache


def test_a_prompt_that_fills_the_context(tiny_llm: Llama) -> None:
    result = complete(tiny_llm, [1] * tiny_llm.n_ctx, logit_bias={258: -math.inf})
    assert (len(result.tokens), result.finish_reason) == (1, "length")
    with pytest.raises(ContextFullError, match=r"257 tokens.*256"):
        tiny_llm.generate([1] * 257)


def test_the_end_of_generation_token_is_not_text(tiny_llm: Llama) -> None:
    result = complete(tiny_llm, "abc", logit_bias=forced(258))
    assert (result.text, result.tokens, result.finish_reason) == ("", [], "stop")


def test_same_seed_same_text(tiny_llm: Llama) -> None:
    first = complete(tiny_llm, "The same prompt", max_tokens=40, seed=7)
    again = complete(tiny_llm, "The same prompt", max_tokens=40, seed=7)
    other = complete(tiny_llm, "The same prompt", max_tokens=40, seed=8)
    assert again.timings.reused_tokens > 0
    assert first.tokens == again.tokens != other.tokens
    unseeded = complete(tiny_llm, "The same prompt", max_tokens=40)
    assert complete(tiny_llm, "The same prompt", max_tokens=40, seed=unseeded.seed).tokens == unseeded.tokens
    assert complete(tiny_llm, "The same prompt", max_tokens=40).seed != unseeded.seed


@each_device
def test_the_seed_of_the_constructor_is_the_default(tiny_path: Path) -> None:
    with Llama(tiny_path, seed=11) as llm:
        result = complete(llm, "x", max_tokens=20)
        assert result.seed == 11
        assert complete(llm, "x", max_tokens=20).tokens == result.tokens


def test_greedy_takes_the_highest_logit(tiny_llm: Llama) -> None:
    prompt = list(b"greedy")
    for token in complete(tiny_llm, prompt, max_tokens=6, temperature=0, logit_bias={258: -50}).tokens:
        logits = tiny_llm.logits(prompt)
        logits[258] -= 50
        assert token == int(np.argmax(logits))
        prompt.append(token)


# -- prompts -------------------------------------------------------------------------------------------------------


def test_an_empty_prompt(tiny_llm: Llama, demo_llm: Llama) -> None:
    for prompt in ("", []):
        with pytest.raises(ValueError, match="prompt is empty"):
            tiny_llm.generate(prompt)
    assert complete(demo_llm, "", max_tokens=1).prompt_tokens == [4080]  # this model begins with BOS


def test_text_prompts_read_special_tokens(demo_llm: Llama) -> None:
    raw = complete(demo_llm, "<|user|>Hi<|end|><|assistant|>", max_tokens=1)
    chat = demo_llm.chat([{"role": "user", "content": "Hi"}], max_tokens=1)
    assert raw.prompt_tokens == chat.prompt_tokens == [4080, 4081, *demo_llm.tokenize("Hi", add_bos=False), 4083, 4082]


@pytest.mark.parametrize("prompt", [[5, 270], [5, -1], [5, 2**40], [5, "x"], [5, 1.5], [5, None]])
def test_wrong_token_ids(tiny_llm: Llama, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"token id"):
        tiny_llm.generate(prompt)
    assert complete(tiny_llm, [5], max_tokens=1).prompt_tokens == [5]


@pytest.mark.parametrize("prompt", [b"bytes", 7, None, {"role": "user"}])
def test_a_prompt_of_another_kind(tiny_llm: Llama, prompt: Any) -> None:
    with pytest.raises(TypeError, match="a prompt is"):
        tiny_llm.generate(prompt)


def test_numpy_token_ids(tiny_llm: Llama) -> None:
    assert complete(tiny_llm, np.array([1, 2, 3]), max_tokens=0).prompt_tokens == [1, 2, 3]


def test_chat_needs_messages_and_a_template(tiny_llm: Llama) -> None:
    for messages in ([], "text", [1], ["text"]):
        with pytest.raises(ValueError, match="messages must be"):
            tiny_llm.chat(messages)  # type: ignore[call-overload]
    with pytest.raises(UnsupportedError, match="chat_template"):
        tiny_llm.chat([{"role": "user", "content": "x"}])


def test_a_chat_template_of_ones_own(tiny_path: Path) -> None:
    with Llama(
        tiny_path, chat_template="{% for m in messages %}{{ m.role }}:{{ m.content }};{{ x }}{% endfor %}"
    ) as llm:
        result = llm.chat([{"role": "user", "content": "a"}], max_tokens=1, template_variables={"x": "!"})
        assert result.prompt_tokens == list(b"user:a;!")


@each_device
def test_a_model_without_a_vocabulary(tmp_path: Path) -> None:
    with Llama(write(tmp_path / "bare.gguf", TinyModel())) as llm:
        result = complete(llm, [1, 2, 3], max_tokens=4, logprobs=1)
        assert (len(result.tokens), result.text) == (4, "")
        for call in (lambda: llm.generate("text"), lambda: llm.tokenize("text"), lambda: llm.detokenize([1])):
            with pytest.raises(UnsupportedError, match="no vocabulary"):
                call()


def test_tokenize_and_back(tiny_llm: Llama, demo_llm: Llama) -> None:
    text = "Grüße, 東京! 👋🏽\n\tthe end"
    assert tiny_llm.detokenize(tiny_llm.tokenize(text)) == text
    assert tiny_llm.tokenize(text.encode()) == tiny_llm.tokenize(text)
    assert tiny_llm.tokenize("the") == [256, ord("e")]
    ids = demo_llm.tokenize(text)
    assert ids[0] == 4080 and demo_llm.detokenize(ids) == text
    assert demo_llm.tokenize(text, add_bos=False) == ids[1:]
    with pytest.raises(ValueError, match="270"):
        tiny_llm.detokenize([270])
    with pytest.raises(ValueError, match="surrogate"):
        tiny_llm.generate("\ud800")


# -- streaming -----------------------------------------------------------------------------------------------------


def test_a_stream_gives_the_same_text(demo_llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "seed": 5, "echo": True}
    with demo_llm.generate("Once upon a time", stream=True, **options) as stream:
        assert stream.completion is None
        pieces = list(stream)
    assert len(pieces) > 10 and all(pieces)
    whole = complete(demo_llm, "Once upon a time", **options)
    assert "".join(pieces) == whole.text
    assert whole.text.startswith("Once upon a time")
    assert stream.completion is not None
    assert stream.completion.tokens == whole.tokens


def test_pieces_are_whole_characters(tiny_llm: Llama) -> None:
    """Random bytes: whatever the tokens are, the pieces together are the bytes decoded as UTF-8."""
    only_high_bytes = forced(*range(128, 256))
    for seed in range(5):
        stream = tiny_llm.generate(
            "x", stream=True, max_tokens=60, seed=seed, temperature=3, logit_bias=only_high_bytes
        )
        pieces = list(stream)
        assert stream.completion is not None
        assert "".join(pieces) == bytes(stream.completion.tokens).decode("utf-8", "replace")
        assert all(piece for piece in pieces)


def test_a_character_of_three_tokens_comes_in_one_piece(tiny_llm: Llama) -> None:
    stream = tiny_llm.generate("x", stream=True, max_tokens=2, logit_bias=forced(EURO[0]))
    assert list(stream) == ["\ufffd", "\ufffd"]  # two beginnings, the second cut off by the end
    two = complete(tiny_llm, [*b"x", *EURO[:2]], max_tokens=1, logit_bias=forced(EURO[2]))
    assert two.text == "\ufffd"  # a continuation of nothing in the text


def test_stop_strings(demo_llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
    plain = complete(demo_llm, "The sea", **options).text
    stop = plain[20:27]
    before = plain[: plain.index(stop)]
    for stops in (stop, [stop], ["never in the text", stop], [f"no {i}" for i in range(5000)] + [stop]):
        result = complete(demo_llm, "The sea", stop=stops, **options)
        assert (result.text, result.finish_reason) == (before, "stop")
    shown = ""
    for piece in demo_llm.generate("The sea", stop=stop, stream=True, **options):
        shown += piece
        assert before.startswith(shown)  # nothing of the stop string leaks, at any time
    assert shown == before


def test_held_back_text_appears_at_the_end(tiny_llm: Llama) -> None:
    result = complete(tiny_llm, "x", max_tokens=3, stop="aaaaX", logit_bias=forced(ord("a")))
    assert (result.text, result.finish_reason) == ("aaa", "length")


def test_a_stream_that_is_closed_stops_the_work(tiny_llm: Llama) -> None:
    stream = tiny_llm.generate("abc", stream=True, max_tokens=None, logit_bias=forced(ord("a")))
    assert [next(stream), next(stream)] == ["a", "a"]
    stream.close()
    assert stream.completion is not None
    assert (stream.completion.text, stream.completion.finish_reason) == ("aa", "cancelled")
    assert list(stream) == []
    assert len(tiny_llm.tokens) < 10
    assert complete(tiny_llm, "abc", max_tokens=1).usage.completion_tokens == 1


def test_a_stream_that_is_closed_before_its_first_piece(tiny_llm: Llama) -> None:
    stream = tiny_llm.generate("abc", stream=True)
    assert stream.completion is None
    stream.close()
    assert stream.completion is not None
    assert (stream.completion.text, stream.completion.finish_reason) == ("", "cancelled")


def test_a_stream_that_is_dropped_or_left_by_an_exception(tiny_llm: Llama) -> None:
    for _ in tiny_llm.generate("abc", stream=True, logit_bias=forced(ord("a"))):
        break
    with pytest.raises(ZeroDivisionError):
        for _ in tiny_llm.generate("abc", stream=True, logit_bias=forced(ord("a"))):
            1 / 0  # noqa: B018
    unused = tiny_llm.generate("abc", stream=True)  # never started: it holds nothing
    assert complete(tiny_llm, "abc", max_tokens=1).usage.completion_tokens == 1
    del unused


def test_a_second_call_beside_ones_own_open_stream(tiny_llm: Llama) -> None:
    stream = tiny_llm.generate("abc", stream=True, logit_bias=forced(ord("a")))
    next(stream)
    calls: list[Any] = [
        lambda: tiny_llm.generate("x"), lambda: tiny_llm.logits([1]), tiny_llm.reset, lambda: tiny_llm.save_state("x"),
        lambda: next(tiny_llm.generate("y", stream=True)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError, match="close"):
            call()
    assert next(stream) == "a"  # it goes on
    stream.close()
    assert len(tiny_llm.logits([1])) == 270


def test_an_exception_in_the_progress_function(tiny_llm: Llama) -> None:
    def fail(_fraction: float) -> None:
        raise LookupError("from progress")

    with pytest.raises(LookupError, match="from progress"):
        tiny_llm.generate("a" * 50, progress=fail)
    seen: list[float] = []
    complete(tiny_llm, "a" * 50, max_tokens=1, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1


# -- reuse of prefixes ---------------------------------------------------------------------------------------------


def test_only_new_tokens_are_processed(tiny_llm: Llama) -> None:
    first = complete(tiny_llm, [*range(100)], max_tokens=0)
    assert first.timings.prefill_tokens == 100 and first.usage.reused_tokens == 0
    longer = complete(tiny_llm, [*range(150)], max_tokens=0)
    assert (longer.usage.reused_tokens, longer.timings.prefill_tokens) == (100, 50)
    branch = complete(tiny_llm, [*range(60), 5, *range(61, 90)], max_tokens=0)
    assert (branch.usage.reused_tokens, branch.timings.prefill_tokens) == (60, 30)
    other = complete(tiny_llm, [9, 9, 9], max_tokens=0)
    assert other.usage.reused_tokens == 0


def test_reuse_changes_nothing(tiny_llm: Llama, demo_llm: Llama) -> None:
    """Logits after a prompt are the same bits, however much of it an earlier prompt of ten or more left."""
    for llm, tokens in (
        (tiny_llm, [(7 * i) % 256 for i in range(120)]),
        (demo_llm, [(31 * i) % 4000 for i in range(700)]),
    ):
        llm.reset()
        fresh = llm.logits(tokens)
        for n_known in (10, 50, len(tokens) - 5, len(tokens)):
            llm.reset()
            llm.logits(tokens[:n_known])
            assert np.array_equal(llm.logits(tokens), fresh), n_known


def test_reuse_of_tokens_that_went_one_by_one_changes_little(tiny_llm: Llama, demo_llm: Llama) -> None:
    """A very short prompt and the tokens of an answer took the kernels of few rows, whose sums round differently."""
    for llm, start in ((tiny_llm, [1]), (demo_llm, [4080, 319, 1200])):
        answer = complete(llm, start, max_tokens=40, seed=1).tokens
        tokens = start + answer + [5] * 12
        reused = llm.logits(tokens)
        assert complete(llm, tokens, max_tokens=0).usage.reused_tokens > 0
        llm.reset()
        assert np.allclose(reused, llm.logits(tokens), atol=0.3)


def test_a_conversation_is_read_once(demo_llm: Llama) -> None:
    messages = [{"role": "user", "content": "Read this. " + "The wind blew over the hill. " * 40}]
    answer = demo_llm.chat(messages, max_tokens=10, seed=1)
    messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And then?"}]
    second = demo_llm.chat(messages, max_tokens=1)
    assert second.usage.reused_tokens >= len(answer.prompt_tokens) - 1
    assert second.timings.prefill_tokens < 40


@each_device
def test_several_conversations_stay_warm(tiny_path: Path) -> None:
    with Llama(tiny_path, n_seq=2) as llm:
        a, b = [1] * 80, [2] * 80
        for prompt in (a, b):
            assert complete(llm, prompt, max_tokens=0).usage.reused_tokens == 0
        for prompt in (a, b, a):
            assert complete(llm, [*prompt, 7], max_tokens=0).usage.reused_tokens >= 70
        complete(llm, [3] * 80, max_tokens=0)  # takes the place of b
        assert complete(llm, a, max_tokens=0).usage.reused_tokens >= 70
        assert complete(llm, b, max_tokens=0).usage.reused_tokens == 0


# -- numbers -------------------------------------------------------------------------------------------------------


def test_logits_are_a_copy(tiny_llm: Llama) -> None:
    logits = tiny_llm.logits([1, 2, 3])
    kept = logits.copy()
    tiny_llm.logits([4, 5])
    assert logits.dtype == np.float32 and logits.shape == (270,)
    assert np.array_equal(logits, kept)


def test_logprobs_are_those_of_the_raw_logits(tiny_llm: Llama) -> None:
    result = complete(tiny_llm, "abc", max_tokens=5, seed=2, temperature=1.5, logprobs=3, logit_bias={258: -math.inf})
    assert result.logprobs is not None and len(result.logprobs) == 5
    tokens = list(b"abc")
    for entry in result.logprobs:
        logits = tiny_llm.logits(tokens).astype(np.float64)
        logs = logits - logits.max()
        logs -= math.log(np.exp(logs).sum())
        assert entry.logprob == pytest.approx(logs[entry.token], abs=1e-3)
        assert [top.token for top in entry.top] == np.argsort(-logs)[:3].tolist()
        assert entry.bytes == (b"th" if entry.token == 256 else bytes([entry.token]) if entry.token < 256 else b"")
        tokens.append(entry.token)


@pytest.mark.parametrize("n", [0, 2])
def test_echo_reports_the_prompt_too(tiny_llm: Llama, n: int) -> None:
    result = complete(tiny_llm, "abcd", max_tokens=2, logprobs=n, echo=True, seed=1)
    assert result.text.startswith("abcd") and result.logprobs is not None
    assert [entry.token for entry in result.logprobs[:4]] == list(b"abcd")
    assert result.logprobs[0].logprob is None
    scores = tiny_llm.score(list(b"abcd"))
    assert [entry.logprob for entry in result.logprobs[1:4]] == pytest.approx(scores[1:].tolist(), abs=1e-3)
    assert all(len(entry.top) == n for entry in result.logprobs[1:])


def test_echo_with_logprobs_draws_the_same_text(demo_llm: Llama) -> None:
    """Scoring a prompt token by token rounds differently: it must leave no trace in what is drawn."""
    prompt = "The ship left the harbour at dawn, and the old captain looked back once more at the"
    for seed in range(4):
        options: dict[str, Any] = {"max_tokens": 12, "seed": seed, "echo": True}
        demo_llm.reset()
        plain = complete(demo_llm, prompt, **options)
        logits = demo_llm.logits(plain.prompt_tokens)
        for n in (0, 3):
            scored = complete(demo_llm, prompt, logprobs=n, **options)
            assert scored.tokens == plain.tokens and scored.text == plain.text
            assert scored.logprobs is not None and len(scored.logprobs) == len(plain.prompt_tokens) + len(plain.tokens)
            # Of the same bits, not only the same draws.
            complete(demo_llm, prompt, logprobs=n, echo=True, max_tokens=0)
            assert np.array_equal(demo_llm.logits(plain.prompt_tokens), logits)


def test_perplexity(tiny_llm: Llama) -> None:
    tokens = list(b"perplexity of this")
    logs = []
    for i in range(1, len(tokens)):
        logits = tiny_llm.logits(tokens[:i]).astype(np.float64)
        logs.append(logits[tokens[i]] - logits.max() - math.log(np.exp(logits - logits.max()).sum()))
    assert tiny_llm.perplexity(tokens) == pytest.approx(math.exp(-np.mean(logs)), rel=1e-3)
    assert math.isnan(tiny_llm.score(tokens)[0])
    with pytest.raises(ValueError, match="two tokens"):
        tiny_llm.perplexity([1])
    with pytest.raises(ContextFullError):
        tiny_llm.perplexity([1] * 300)


# -- loading -------------------------------------------------------------------------------------------------------


@each_device
def test_sizes_and_reports(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(tiny_path, verbose=True) as llm:
        assert llm.n_ctx == llm.info.n_ctx_train == 256
        assert llm.n_vocab == 270
        assert llm.info.arch == "llama"
    out, err = capsys.readouterr()
    assert out == ""
    assert "context: 256 tokens" in err
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Llama(tiny_path, n_ctx=0).n_ctx == 256
        assert Llama(tiny_path, n_ctx=100).n_ctx == 100
        assert caught == []
        assert Llama(tiny_path, n_ctx=300).n_ctx == 300
    assert "256" in str(caught[0].message) and "300" in str(caught[0].message)


def test_a_context_cut_to_what_fits_is_said(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LittleMemory(Context):
        def __init__(self, model: Model, settings: ContextSettings) -> None:
            super().__init__(model, replace(settings, n_ctx=settings.n_ctx or 100))

    monkeypatch.setattr("fasa_py.llama.Context", LittleMemory)
    with pytest.warns(UserWarning, match=r"n_ctx = 100.*256"):
        assert Llama(tiny_path).n_ctx == 100


@each_device
def test_what_a_failed_constructor_took_is_free_at_once(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the traceback, which an interactive Python keeps, still has the object."""
    found: list[Context] = []

    def fail(context: Context) -> None:
        found.append(context)
        raise ValueError("late")

    monkeypatch.setattr("fasa_py.llama.Slots", fail)
    with pytest.raises(ValueError, match="late") as caught:
        Llama(tiny_path)
    half = next(e.frame.f_locals["self"] for e in caught.traceback if isinstance(e.frame.f_locals.get("self"), Llama))
    with pytest.raises(TypeError):
        found[0].stats()
    with pytest.raises(TypeError):
        half._model.plan(ContextSettings())
    with pytest.raises(ValueError, match="closed"):
        _ = half._gguf._handle


@each_device
def test_a_context_that_does_not_fit(tiny_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(fasa_py.OutOfMemoryError, match=r"MiB.*would fit"):
            Llama(tiny_path, n_ctx=2**28, n_seq=64)


@pytest.mark.parametrize(
    "options",
    [{"n_ctx": -1}, {"n_ctx": 1.5}, {"n_batch": 0}, {"n_seq": 0}, {"n_threads": 0}, {"seed": -2}, {"device": "tpu"},
     {"device": "cpu:1"}],
)  # fmt: skip
def test_wrong_options(tiny_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Llama(tiny_path, **options)


def test_cuda_in_a_build_without_it(tiny_path: Path) -> None:
    if build_info().cuda:
        pytest.skip("this build has CUDA")
    with pytest.raises(UnsupportedError, match=r"no CUDA backend.*device='cpu'"):
        Llama(tiny_path, device="cuda")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Llama(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("this is no model")
    with pytest.raises(fasa_py.FormatError, match=r"text\.gguf"):
        Llama(tmp_path / "text.gguf")
    with pytest.raises(ValueError, match="zero byte"):
        Llama("a\0b")


def test_a_vocabulary_of_another_size(tmp_path: Path) -> None:
    model = TinyModel(n_vocab=270, vocabulary=True)
    path = write(tmp_path / "wrong.gguf", model, meta=byte_vocabulary(265))
    with pytest.raises(fasa_py.FormatError, match="265"):
        Llama(path)


def test_every_error_has_one_base() -> None:
    for name in (
        "FormatError",
        "UnsupportedError",
        "OutOfMemoryError",
        "ContextFullError",
        "DeviceError",
        "CancelledError",
    ):
        assert issubclass(getattr(fasa_py, name), FasaError)
    assert issubclass(fasa_py.OutOfMemoryError, MemoryError) and issubclass(ContextFullError, ValueError)
