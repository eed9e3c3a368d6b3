"""The dictionaries of the OpenAI API, with the methods and spelling that llama-cpp-python users know."""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from . import compat
from .generation import Completion, TokenLogprob


class OpenAIStyle:
    """``create_completion``, ``create_chat_completion`` and ``__call__`` on top of ``generate`` and ``chat``.

    Options that are not implemented raise UnsupportedError instead of being ignored.
    """

    path: Any
    generate: Any
    chat: Any

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        echo: bool = False,
        logprobs: int | None = None,
        model: str | None = None,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        top_k: int = 40,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        logit_bias: Mapping[Any, float] | None = None,
        **options: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continue a text: a ``text_completion`` dict, or an iterator of such chunks with ``stream=True``.

        :param max_tokens: None, 0 or below: until the context is full
        :raises UnsupportedError: ``suffix``, ``grammar``, ``mirostat_mode`` … with a value that would change something
        """
        compat.refuse_unsupported(options, compat.COMPLETION, "create_completion")
        arguments = _arguments(
            max_tokens, stop, temperature, top_p, min_p, top_k, repeat_penalty, presence_penalty, frequency_penalty,
            seed, logit_bias,
        )  # fmt: skip
        result = self.generate(prompt, stream=stream, echo=echo, logprobs=logprobs, **arguments)
        head = _head("cmpl", "text_completion", model or str(self.path))
        if stream:
            return _text_chunks(head, result, logprobs is not None)
        completion: Completion = result
        reported = None if completion.logprobs is None else _text_logprobs(completion.logprobs, _Offsets())
        choice = _text_choice(completion.text, reported, completion.finish_reason)
        return {**head, "choices": [choice], "usage": _usage(completion)}

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        model: str | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        min_p: float = 0.05,
        top_k: int = 40,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        logit_bias: Mapping[Any, float] | None = None,
        **options: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answer a conversation: a ``chat.completion`` dict, or an iterator of ``chat.completion.chunk`` dicts.

        :raises UnsupportedError: ``tools``, ``response_format``, ``grammar`` … with a value that would change something
        :raises ValueError: top_logprobs without logprobs
        """
        compat.refuse_unsupported(options, compat.CHAT, "create_chat_completion")
        if top_logprobs is not None and not logprobs:
            raise ValueError("top_logprobs needs logprobs=True")
        arguments = _arguments(
            max_tokens, stop, temperature, top_p, min_p, top_k, repeat_penalty, presence_penalty, frequency_penalty,
            seed, logit_bias,
        )  # fmt: skip
        result = self.chat(messages, stream=stream, logprobs=(top_logprobs or 0) if logprobs else None, **arguments)
        name = model or str(self.path)
        if stream:
            return _chat_chunks(_head("chatcmpl", "chat.completion.chunk", name), result)
        completion: Completion = result
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text},
            "logprobs": _chat_logprobs(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }
        return {**_head("chatcmpl", "chat.completion", name), "choices": [choice], "usage": _usage(completion)}


def _arguments(
    max_tokens: int | None,
    stop: str | Sequence[str] | None,
    temperature: float,
    top_p: float,
    min_p: float,
    top_k: int,
    repeat_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    seed: int | None,
    logit_bias: Mapping[Any, float] | None,
) -> dict[str, Any]:
    """Arguments of generate: llama.cpp's spellings of "off" and the API's text keys of logit_bias translated."""
    return {
        "max_tokens": None if max_tokens is None or max_tokens <= 0 else max_tokens,
        "stop": stop,
        "temperature": temperature,
        "top_p": top_p,
        "min_p": min_p,
        "top_k": top_k,
        "repeat_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": None if seed in compat.RANDOM_SEEDS else seed,
        "logit_bias": {_token_id(key): bias for key, bias in logit_bias.items()} if logit_bias else None,
    }


def _token_id(key: object) -> object:
    """A key of logit_bias, which JSON makes a text; generate checks the number."""
    if not isinstance(key, str):
        return key
    try:
        return int(key)
    except ValueError:
        raise ValueError(f"logit_bias: a token id must be a whole number, not {key!r}") from None


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}


def _usage(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }


def _text_choice(text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


class _Offsets:
    """Where each token starts in the text, in characters; one that only continues a character starts at its end."""

    def __init__(self) -> None:
        self._n = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def next(self, entry: TokenLogprob) -> int:
        start = self._n
        if not entry.special:
            self._n += len(self._decoder.decode(entry.bytes))
        return start


def _text_logprobs(entries: Sequence[TokenLogprob], offsets: _Offsets) -> dict[str, Any]:
    """The completions API's parallel lists."""
    return {
        "tokens": [entry.text for entry in entries],
        "text_offset": [offsets.next(entry) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_top_logprobs(entry) for entry in entries],
    }


def _top_logprobs(entry: TokenLogprob) -> dict[str, float | None] | None:
    """Text -> log probability of the most likely tokens and the one drawn; of equal texts, the likelier counts."""
    if entry.logprob is None:
        return None
    top: dict[str, float | None] = {}
    for token in (*entry.top, entry):
        top.setdefault(token.text, token.logprob)
    return top


def _chat_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None

    def one(entry: TokenLogprob) -> dict[str, Any]:
        return {"token": entry.text, "bytes": list(entry.bytes), "logprob": entry.logprob}

    content = [{**one(entry), "top_logprobs": [one(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def _text_chunks(head: dict[str, Any], stream: Any, logprobs: bool) -> Generator[dict[str, Any], None, None]:
    """One chunk a piece, then one with the finish_reason."""
    offsets = _Offsets()
    with closing(stream):
        for piece in stream.pieces():
            reported = _text_logprobs(piece.logprobs, offsets) if logprobs else None
            yield {**head, "choices": [_text_choice(piece.text, reported, None)]}
        yield {**head, "choices": [_text_choice("", None, stream.completion.finish_reason)]}


def _chat_chunks(head: dict[str, Any], stream: Any) -> Generator[dict[str, Any], None, None]:
    """The role, one chunk a piece, then one with the finish_reason."""

    def chunk(delta: dict[str, str], logprobs: Any = None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    with closing(stream):
        yield chunk({"role": "assistant"})
        for piece in stream.pieces():
            yield chunk({"content": piece.text}, _chat_logprobs(piece.logprobs) if piece.logprobs else None)
        yield chunk({}, finish_reason=stream.completion.finish_reason)
