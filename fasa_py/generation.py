"""One run of the model: prompt in, pieces of text out, and the :class:`Completion` that sums it up."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ._native import ffi
from .errors import CancelledError
from .model import Context, Progress, Sampler, Stats
from .sampling import SamplingParams, log_softmax, top_tokens
from .slots import Slots
from .stop import StopFilter, StopMatcher
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log probability, from the model's raw logits: before bias, penalties and temperature."""

    token: int
    bytes: bytes  # of the token's text; maybe an incomplete UTF-8 sequence
    special: bool  # a control token: it is not part of the text
    logprob: float | None  # None: the very first token of a sequence, which nothing predicts
    top: tuple[TokenLogprob, ...] = ()  # the most likely tokens at this place, the most likely first

    @property
    def text(self) -> str:
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True)
class Usage:
    """Counts of tokens. ``reused_tokens``: of the prompt, already in the KV cache and not processed again."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds spent in the engine, without the time that the consumer of a stream took."""

    prefill_tokens: int  # of the prompt, processed in this call, in batches
    prefill_s: float
    decode_tokens: int  # processed one by one after the prompt
    decode_s: float
    reused_tokens: int

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Sparsity:
    """What attention read of the KV cache to draw the tokens of a run: sums over its decode steps.

    ``layers_sparse`` is 0 when the method did not engage: full attention, or a context too short for it.
    """

    n_steps: int = 0  # decode steps; the first token drawn needs none
    layers_sparse: int = 0  # layer passes that attended to selected tokens
    layers_dense: int = 0  # layer passes that attended to all
    tokens_selected: int = 0  # in sparse layer passes, of every list: one a KV head, or one a query head
    key_bytes: int = 0  # read of the KV cache, by selection and attention
    value_bytes: int = 0
    # Of a KV cache split between device and host; 0 where all is on the device.
    rows_hit: int = 0  # rows attended to that the device's cache of rows had
    rows_missed: int = 0  # and those that were read from host memory
    pcie_bytes: int = 0  # of rows that crossed the bus, new ones on their way to host memory included

    @property
    def hit_rate(self) -> float:
        """Share of the rows attended to that the device's cache of rows had; 0 where nothing is in host memory."""
        return self.rows_hit / max(1, self.rows_hit + self.rows_missed)

    @property
    def pcie_bytes_per_step(self) -> float:
        """Bytes of rows that crossed the bus."""
        return self.pcie_bytes / max(1, self.n_steps)

    @property
    def layers_sparse_per_step(self) -> float:
        return self.layers_sparse / max(1, self.n_steps)

    @property
    def layers_dense_per_step(self) -> float:
        return self.layers_dense / max(1, self.n_steps)

    @property
    def tokens_selected_per_layer(self) -> float:
        """A sparse layer pass, over all of its lists."""
        return self.tokens_selected / max(1, self.layers_sparse)

    @property
    def key_bytes_per_step(self) -> float:
        return self.key_bytes / max(1, self.n_steps)

    @property
    def value_bytes_per_step(self) -> float:
        return self.value_bytes / max(1, self.n_steps)

    @property
    def kv_bytes_per_step(self) -> float:
        return self.key_bytes_per_step + self.value_bytes_per_step

    @classmethod
    def between(cls, before: Stats, after: Stats) -> Sparsity:
        """Of what was done in between."""

        def grown(name: str) -> int:
            difference: int = getattr(after, name) - getattr(before, name)
            return difference

        return cls(grown("n_decode"), *map(grown, list(cls.__dataclass_fields__)[1:]))


@dataclass(frozen=True)
class Completion:
    """The result of a run; ``str()`` of it is its text.

    ``finish_reason``: ``stop`` (the model ended its text, or a stop string came), ``length`` (max_tokens, or the
    context is full), ``cancelled`` (another thread, or the stream was closed early).
    ``text`` has neither the end-of-generation token nor the stop string; ``tokens`` are all that were drawn except the
    end-of-generation token. ``seed`` gives the same text again.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings
    sparsity: Sparsity
    seed: int
    prompt_tokens: list[int] = field(repr=False)
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of :meth:`fasa_py.Llama.generate` besides ``stream``, for type checkers."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    echo: bool
    logit_bias: Mapping[int, float] | None
    progress: Progress | None


class ChatOptions(GenerateOptions, total=False):
    """The same of :meth:`fasa_py.Llama.chat`."""

    template_variables: Mapping[str, Any] | None


@dataclass(frozen=True)
class Request:
    """A checked call of generate."""

    prompt: list[int]
    prompt_text: str  # for echo
    max_tokens: int | None  # None: until the context is full
    sampling: SamplingParams
    stop: StopMatcher
    logprobs: int | None  # how many of the most likely tokens to report; None: no log probabilities at all
    echo: bool
    progress: Progress | None = None


@dataclass(frozen=True)
class Piece:
    """A step of a stream: whole characters, and the log probabilities of the tokens drawn since the last piece."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Generation:
    """Iterate :meth:`pieces` once; :meth:`completion` at any time."""

    def __init__(self, context: Context, slots: Slots, vocabulary: Vocabulary, request: Request) -> None:
        self._context = context
        self._slots = slots
        self._vocabulary = vocabulary
        self._request = request
        self._sampler = Sampler(request.sampling)
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._n_reported = 0  # of _logprobs, already in a piece
        self._n_reused = 0
        self._n_prefilled = 0
        self._n_decoded = 0
        self._prefill_s = 0.0
        self._decode_s = 0.0
        self._sparsity = Sparsity()
        self._finish_reason = "cancelled"

    def pieces(self) -> Generator[Piece, None, None]:
        """Run. Closing the iterator stops the work."""
        try:
            seq = self._prefill()
            if self._request.echo:
                yield self._piece(self._request.prompt_text)
            yield from self._decode(seq)
        except CancelledError:
            pass  # finish_reason says so

    def _prefill(self) -> int:
        """Process the part of the prompt that no sequence holds yet; returns the sequence."""
        request = self._request
        score = request.echo and request.logprobs is not None
        seq, self._n_reused = (self._slots.take_empty(), 0) if score else self._slots.take(request.prompt)
        started = time.perf_counter()
        try:
            if score:
                self._score_prompt(seq)
                self._context.truncate(seq, 0)
            self._context.decode(seq, request.prompt[self._n_reused :], request.progress)
        finally:
            self._prefill_s = time.perf_counter() - started
            self._n_prefilled = self._context.length(seq) - self._n_reused
        return seq

    def _decode(self, seq: int) -> Iterator[Piece]:
        """Draw tokens until something ends the text, then what was held back."""
        decoder = self._vocabulary.stream()
        stop = StopFilter(self._request.stop)
        try:
            for token in self._draw(seq):
                shown = stop.push(decoder.push(token))
                if shown:
                    yield self._piece(shown)
                if stop.found is not None:
                    break
        except CancelledError:
            pass
        rest = stop.push(decoder.flush())
        rest += stop.flush()
        if stop.found is not None:
            self._finish_reason = "stop"
        if rest or self._n_reported < len(self._logprobs):
            yield self._piece(rest)

    def _draw(self, seq: int) -> Iterator[int]:
        """The tokens, one by one."""
        request = self._request
        n_prompt = len(request.prompt)
        room = self._context.n_ctx - n_prompt + 1  # the last token drawn needs no place in the cache
        n_max = room if request.max_tokens is None else min(request.max_tokens, room)
        previous = ffi.new("int32_t[]", n_prompt + n_max)
        previous[0:n_prompt] = request.prompt
        before = self._context.stats()
        while len(self._tokens) < n_max:
            started = time.perf_counter()
            if self._tokens:
                self._context.decode(seq, self._tokens[-1:])
                self._n_decoded += 1
                self._sparsity = Sparsity.between(before, self._context.stats())
            token = self._context.sample(self._sampler, previous, n_prompt + len(self._tokens))
            self._decode_s += time.perf_counter() - started
            if token in self._vocabulary.eog_ids:
                self._finish_reason = "stop"
                return
            previous[n_prompt + len(self._tokens)] = token
            self._tokens.append(token)
            if request.logprobs is not None:
                self._logprobs.append(self._token_logprob(token))
            yield token
        self._finish_reason = "length"

    def _score_prompt(self, seq: int) -> None:
        """Log probabilities of the prompt's own tokens: in batches, or one by one where the alternatives are asked.

        What that leaves in the sequence is not what a prompt leaves: one by one, sums round differently.
        """
        prompt = self._request.prompt
        if not self._request.logprobs:
            scores = self._context.score(seq, prompt).tolist()
            self._logprobs = [self._entry(*pair) for pair in zip(prompt, [None, *scores[1:]], strict=True)]
            return
        for i, token in enumerate(prompt):
            self._logprobs.append(self._token_logprob(token) if i else self._entry(token, None))
            self._context.decode(seq, [token])

    def _token_logprob(self, token: int) -> TokenLogprob:
        """Of a token, from the logits that predict it."""
        logs = log_softmax(self._context.logits)
        top = tuple(self._entry(t, float(logs[t])) for t in top_tokens(logs, self._request.logprobs or 0))
        return self._entry(token, float(logs[token]), top)

    def _entry(self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        vocabulary = self._vocabulary
        return TokenLogprob(token, vocabulary.token_bytes(token), vocabulary.is_special(token), logprob, top)

    def _piece(self, text: str) -> Piece:
        self._text.append(text)
        fresh = tuple(self._logprobs[self._n_reported :])
        self._n_reported = len(self._logprobs)
        return Piece(text, fresh)

    def completion(self) -> Completion:
        """What has been generated so far."""
        n_prompt = len(self._request.prompt)
        return Completion(
            text="".join(self._text),
            tokens=self._tokens,
            finish_reason=self._finish_reason,
            usage=Usage(n_prompt, len(self._tokens), self._n_reused),
            timings=Timings(
                prefill_tokens=self._n_prefilled,
                prefill_s=self._prefill_s,
                decode_tokens=self._n_decoded,
                decode_s=self._decode_s,
                reused_tokens=self._n_reused,
            ),
            sparsity=self._sparsity,
            seed=self._request.sampling.seed,
            prompt_tokens=self._request.prompt,
            logprobs=self._logprobs if self._request.logprobs is not None else None,
        )
