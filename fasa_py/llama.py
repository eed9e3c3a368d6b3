""":class:`Llama`: load a model and generate text."""

from __future__ import annotations

import operator
import os
import secrets
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from . import compat
from .chat import ChatTemplate, encode_chat
from .errors import ContextFullError
from .gate import Gate
from .generation import ChatOptions, Completion, GenerateOptions, Generation, Piece, Request
from .gguf import GGUF
from .memory import memory_size
from .method import Method
from .model import Context, Model, ModelInfo, Plan, Progress
from .openai import OpenAIStyle
from .planning import advised, checked_settings, with_table
from .progress import progress_bar
from .sampling import SamplingParams, whole_number
from .slots import Slots
from .stop import StopMatcher
from .tokenizer import Tokenizer
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


class TextStream(Iterator[str]):
    """Pieces of a text as it comes: whole characters, never a part of a stop string.

    ``close()``, leaving a ``with`` block, or dropping the object stops the work. ``completion`` is the
    :class:`Completion` once the stream has ended, in whatever way.
    """

    def __init__(self, generation: Generation, pieces: Generator[Piece, None, None]) -> None:
        self._generation = generation
        self._pieces = pieces

    @property
    def completion(self) -> Completion | None:
        ended = getgeneratorstate(self._pieces) == GEN_CLOSED
        return self._generation.completion() if ended else None

    def pieces(self) -> Iterator[Piece]:
        """The same stream with the log probabilities of each piece's tokens."""
        return self._pieces

    def __next__(self) -> str:
        for piece in self._pieces:
            if piece.text:
                return piece.text
        raise StopIteration

    def close(self) -> None:
        self._pieces.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Llama(OpenAIStyle):
    """A GGUF model that generates text.

    Several threads may use one object: calls queue. A streaming iterator keeps its place until it is exhausted or
    closed. Ctrl-C stops the work at once and leaves the object usable. What consecutive prompts share from the start
    is processed once (prefix reuse), but for what the method has to observe: a prompt's last ``observe_window`` tokens
    (snapkv, rkv), or all of them (h2o).

    Parameters
    ----------
    path
        The model file (any file of a split set); None: the embedded demo model. ``model_path`` is another name for it.
    n_ctx
        Tokens that a conversation can hold. None or 0: the trained context, or what fits in memory if that is less;
        the attribute ``n_ctx`` says. On a GPU multiples of 64 are served fastest.
    n_batch
        Tokens of a prompt processed at once, raised to 20 if less. What is computed does not depend on it.
    n_seq
        Conversations kept in memory at the same time, each of up to n_ctx tokens.
    n_threads
        CPU threads; None: all cores usable by this process.
    device
        ``cpu``, ``cuda`` or ``cuda:N``; ``auto``: the first GPU, if this build has CUDA and one can be used, else the
        CPU. The attribute ``device`` and the log say which it is.
    vram
        GPU memory that may be taken, in bytes or as ``"8GiB"``: all of it counts, that of CUDA itself too. None: all
        that is free.
    seed
        Used by every call that gives none; None (or, as in llama.cpp, -1 or 0xFFFFFFFF): a new random one each call
        (``Completion.seed`` says which).
    verbose
        Say on stderr what was loaded, where, and with how large a context.
    chat_template
        The name of one of the file's templates, or the source of another; None: the file's own.
    method
        How decode steps attend: ``auto``, ``full``, ``fasa`` or a baseline, see :class:`fasa_py.Method`; or a Method.
    n_tip, n_fac, n_sink, n_recent, dense_layers, granularity, criterion
        Settings of the method; None: as :class:`fasa_py.Method` has them. ``granularity`` (``kv_head`` or ``head``)
        is that of dominant chunks and tokens alike. Settings that are not here go into a Method.
    paper
        Start from the settings of the paper instead, :meth:`fasa_py.Method.paper`.
    kv
        Where the KV cache lies: all of it on the device, or (``split``) only the dominant keys there and the rest in
        host memory, which only method ``fasa`` with sets per KV head can do; ``auto``: the latter where only that fits.
        :attr:`plan` has the choice. On the CPU both are host memory.
    kv_cache_rows
        Of a ``split`` cache: how many rows of keys and values, those chosen of late, the GPU keeps of every sparse
        layer and KV head, so that only others cross the bus. None: four times n_fac. 0: none.
    k_dom
        How the dominant keys that method ``fasa`` ranks tokens by are stored: ``f16``, exactly; or ``int8`` or ``q4``,
        copies of 8 or 4 bits with one scale a token and KV head. The whole exact keys are then stored beside the
        values, so that what is attended to is computed exactly. Not for sets per query head (``granularity="head"``).
    table
        A calibration table instead of the file's own: the path of a calibrated GGUF file of the same model, or an
        object with ``ca``, ``order``, ``order_head`` and ``criterion`` as :class:`fasa_py.table.Table` takes them.
    options
        Further options of llama-cpp-python's constructor, with the values that change nothing here. With ``device``
        left at ``auto``, ``n_gpu_layers=0`` means the CPU. Other numbers of layers, and ``n_threads_batch``,
        ``use_mmap`` and ``use_mlock``, pass with any value and a note in the log, and so does ``chat_format`` where
        there is a chat template.

    Raises
    ------
    OSError, FormatError, UnsupportedError
        The file cannot be read, is damaged, or needs something this build does not implement.
    OutOfMemoryError
        Weights and context do not fit: said before the weights are loaded, with what is missing and the largest n_ctx
        that fits.
    DeviceError
        ``device="cuda"``, or a limit of its memory, and no GPU can be used.
    ValueError
        A setting is out of its range, or the method needs a table and neither file nor ``table`` has one.
    """

    _ignore_table = False  # the file's own: calibration makes another

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        model_path: str | os.PathLike[str] | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_seq: int = 1,
        n_threads: int | None = None,
        device: str = "auto",
        vram: int | str | None = None,
        seed: int | None = None,
        verbose: bool = False,
        chat_template: str | None = None,
        method: str | Method = "auto",
        n_tip: int | float | None = None,
        n_fac: int | float | None = None,
        n_sink: int | None = None,
        n_recent: int | None = None,
        dense_layers: int | None = None,
        granularity: str | None = None,
        criterion: str | None = None,
        paper: bool = False,
        kv: str = "auto",
        kv_cache_rows: int | None = None,
        k_dom: str = "f16",
        table: Any = None,
        **options: Any,
    ) -> None:
        self._gate = Gate()
        if path is not None and model_path is not None:
            raise TypeError("path and model_path are the same parameter: give one")
        compat.refuse_unsupported(options, compat.CONSTRUCTOR, "Llama")
        if device == "auto" and options.get("n_gpu_layers") == 0:
            device = "cpu"
        compat.note_differences(options)
        self._seed = None if seed in compat.RANDOM_SEEDS else whole_number("seed", seed, 0, 2**64 - 1)
        n_threads = n_threads if n_threads is None else whole_number("n_threads", n_threads, 1, 4096)
        asked = Method.of(
            method, paper, granularity, n_tip=n_tip, n_fac=n_fac, n_sink=n_sink, n_recent=n_recent,
            dense_layers=dense_layers, criterion=criterion,
        )  # fmt: skip
        settings = checked_settings(n_ctx, n_batch, n_seq, asked, kv, k_dom, kv_cache_rows)
        vram_bytes = memory_size(vram)

        self.path = default_model() if path is None and model_path is None else Path(path or model_path or "")
        with ExitStack() as opened:  # a failure frees it at once: whoever keeps the traceback keeps the object
            self._gguf = opened.enter_context(closing(GGUF(self.path)))
            compat.check_chat_format(
                options.get("chat_format"),
                chat_template is not None or "tokenizer.chat_template" in self._gguf.metadata,
            )
            plan_only = Model(
                self._gguf, device, n_threads, ignore_table=self._ignore_table, vram=vram_bytes, plan_only=True
            )
            with closing(plan_only):
                settings = with_table(settings, plan_only, table)
                plan_only.check_plan(settings)  # what will not fit is said before the weights are loaded
            with progress_bar(f"loading {self.path.name}") as progress:
                model = Model(self._gguf, device, n_threads, progress, self._ignore_table, vram_bytes)
            self._model = opened.enter_context(closing(model))
            self.info: ModelInfo = self._model.info
            self._vocabulary = Vocabulary(self._gguf, self.info.n_vocab)
            self._chat_template_choice = chat_template
            self._chat_template: ChatTemplate | None = None
            self._table = settings.table
            self._context = opened.enter_context(closing(Context(self._model, settings)))
            self._method = self._context.method
            self._slots = Slots(self._context)
            self._warn_of_context(settings.n_ctx)
            if verbose:
                self._report()
            self._opened = opened.pop_all()

    def _warn_of_context(self, asked: int) -> None:
        """Of one longer than training was; or, where none was asked for (0), of a shorter one."""
        if asked > self.info.n_ctx_train:
            warnings.warn(
                f"n_ctx {asked} is more than the {self.info.n_ctx_train} tokens that {self.path.name} was trained for: "
                "expect poor text beyond them",
                stacklevel=3,
            )
        if asked == 0 and self.n_ctx < self.info.n_ctx_train:
            warnings.warn(
                f"memory suffices for n_ctx = {self.n_ctx} tokens, not for the {self.info.n_ctx_train} that "
                f"{self.path.name} was trained for",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        placement = ", split KV cache" if self._context.plan.kv == "split" else ""
        return f"<Llama {self.path.name!r} on {self.device}, n_ctx {self._context.n_ctx}{placement}>"

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename_glob: str | None = None,
        *,
        filename: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_dir: str | Path | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Llama:
        """Download a model from the Hugging Face hub (once: it is cached) and load it.

        :param repo_id: ``owner/name``
        :param filename_glob: e.g. ``*q4_k_m.gguf``; must match one model (a split set counts as one). ``filename`` is
            another name for it
        :param options: for the constructor
        :raises FileNotFoundError: no file matches; lists the repository's GGUF files
        :raises ValueError: several match; lists them
        """
        from . import hub  # huggingface-hub takes longer to import than the rest of the package

        if (filename_glob is None) == (filename is None):
            raise TypeError("give one of filename_glob and filename")
        path = hub.download(
            repo_id, filename_glob or filename or "", revision=revision, cache_dir=cache_dir, local_dir=local_dir,
            token=token,
        )  # fmt: skip
        return cls(path, **options)

    def _report(self) -> None:
        info, plan = self.info, self._context.plan
        print(
            f"{self.path.name}: {info.arch}, {info.n_params / 1e6:.1f} M parameters, "
            f"{info.n_bytes / 2**20:.0f} MiB on {info.device}\n"
            f"context: {self.n_ctx} tokens (trained: {info.n_ctx_train}, fitting now: {plan.n_ctx_max}), "
            f"KV cache {plan.kv_bytes / 2**20:.0f} MiB (dominant keys {plan.kv_dom_bytes / 2**20:.0f} MiB"
            f"{', the rest in host memory' if plan.kv == 'split' else ''}), "
            f"scratch {plan.scratch_bytes / 2**20:.0f} MiB\n"
            f"taken: {plan.device_bytes / 2**20:.0f} MiB on the device, {plan.host_bytes / 2**20:.0f} MiB on the host\n"
            f"attention: {self.method}",
            file=sys.stderr,
        )

    # -- properties ------------------------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        """Tokens that a conversation can hold."""
        return self._context.n_ctx

    @property
    def device(self) -> str:
        """What the model runs on: ``cpu (avx2, 8 threads)``, ``cuda:0 (NVIDIA H200)``."""
        return self.info.device

    @property
    def n_vocab(self) -> int:
        """Rows of the model's output."""
        return self.info.n_vocab

    @property
    def plan(self) -> Plan:
        """Bytes that weights, KV cache and scratch take, on device and host; :func:`fasa_py.plan` knows them before."""
        return self._context.plan

    @property
    def method(self) -> Method:
        """How decode steps attend: ``auto`` and all settings resolved."""
        return self._method

    def set_method(self, method: str | Method = "auto", *, paper: bool = False, **settings: Any) -> Method:
        """Attend another way from now on. Returns the method, resolved.

        What is cached stays. A method that has to see the queries of a prompt has the next one's last
        ``observe_window`` tokens (snapkv, rkv) or all of them (h2o) processed again, cached or not.

        :param method: a name, or a :class:`Method` (``llm.method`` for the one in use)
        :param settings: ``granularity``, and any field of Method by its name
        :raises ValueError: a setting out of its range, or a method that needs a table without one
        :raises UnsupportedError: dominant chunks per query head in a cache that was split between device and host
        :raises OutOfMemoryError: tables of the method's own (quest's bounds of pages) do not fit; the old one stays
        """
        asked = Method.of(method, paper, **settings)
        with self._turn():
            self._context.set_method(advised(asked, self._table))
            self._method = self._context.method
            return self._method

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata."""
        return self._gguf.metadata

    @property
    def tokenizer(self) -> Tokenizer:
        """:raises UnsupportedError: the file has no vocabulary, or one of a kind that is not implemented"""
        return self._vocabulary.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """:raises UnsupportedError: the file has no chat template and none was given"""
        if self._chat_template is None:
            self._chat_template = ChatTemplate.from_metadata(
                self._gguf.metadata, self.tokenizer, self._chat_template_choice
            )
        return self._chat_template

    # -- text and tokens -------------------------------------------------------------------------------------------

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text (bytes are UTF-8).

        :param add_bos: put the beginning-of-sequence token first, if the metadata says that this model has it
        :param special: read the text of special tokens as these tokens
        """
        tokenizer = self.tokenizer
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return tokenizer.encode(
            text, add_bos=add_bos and tokenizer.add_bos and tokenizer.bos_id is not None, special=special
        )

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are not valid UTF-8 become U+FFFD."""
        return self.tokenizer.decode(self._checked_tokens(tokens))

    def _checked_tokens(self, tokens: Sequence[int]) -> list[int]:
        """:raises ValueError: an id is not a whole number below n_vocab; says which"""
        try:
            ids = [operator.index(token) for token in tokens]
        except TypeError:
            raise ValueError("token ids must be whole numbers") from None
        if ids and (min(ids) < 0 or max(ids) >= self.n_vocab):
            i = next(i for i, token in enumerate(ids) if not 0 <= token < self.n_vocab)
            raise ValueError(f"token id {ids[i]} at position {i} is not in the vocabulary of {self.n_vocab} tokens")
        return ids

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt of any kind, checked against the vocabulary and the context."""
        if isinstance(prompt, str):
            ids = self.tokenize(prompt, special=True)
        elif isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, (Sequence, np.ndarray)):
            raise TypeError(
                f"a prompt is a text, a list of token ids or a list of messages, not {type(prompt).__name__}"
            )
        elif len(prompt) > 0 and isinstance(prompt[0], Mapping):
            ids = self._chat_tokens(prompt)  # type: ignore[arg-type]
        else:
            ids = prompt  # type: ignore[assignment]
        ids = self._checked_tokens(ids)
        if not ids:
            raise ValueError("the prompt is empty, and nothing is put before it: give at least one token")
        if len(ids) > self.n_ctx:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens, the context holds n_ctx = {self.n_ctx}: shorten the prompt, "
                "or load the model with a larger n_ctx"
            )
        return ids

    # -- generation ------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Completion: ...

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]) -> TextStream: ...

    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Completion | TextStream: ...

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        logprobs: int | None = None,
        echo: bool = False,
        logit_bias: Mapping[int, float] | None = None,
        progress: Progress | None = None,
    ) -> Completion | TextStream:
        """Continue a prompt.

        The same prompt, parameters and seed give the same text, whether the prompt was processed before or not. One
        exception: where the prompt goes on after an answer generated here (the next turn of a chat), the answer's
        keys and values are reused as decoding rounded them. Logits then differ a little from those of the same
        history processed afresh, and a close draw may fall out differently; :meth:`reset` before the call avoids that.

        Parameters
        ----------
        prompt
            A text, taken as it is: BOS as the metadata says, special tokens written in it are read as such, no chat
            template. Or a list of token ids, taken as they are. Or a list of chat messages (``role``, ``content``).
        max_tokens
            None: until the model ends its text or the context is full. 0: only process the prompt.
        temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed
            See :class:`fasa_py.sampling.SamplingParams`. ``temperature=0`` always takes the most likely token.
        stop
            Strings that end the text; they are not part of it.
        stream
            Return a :class:`TextStream` instead of a :class:`Completion`.
        logprobs
            Report the natural log probability of each token and this many of the most likely ones, from raw logits.
        echo
            Put the prompt before the text. With logprobs, the prompt's tokens are reported too (its alternatives
            are computed one token at a time: slow for a long prompt, unless ``logprobs=0``).
        logit_bias
            Token id -> number added to its logit; ``-inf`` bans the token.
        progress
            Called with the fraction of the prompt processed.

        Raises
        ------
        ContextFullError
            The prompt is longer than n_ctx.
        ValueError
            An empty prompt, a token id out of range, or a parameter out of its range.
        """
        params = SamplingParams(
            seed=self._seed_of_call(seed),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
        )
        params.check_bias(self.n_vocab)
        self._gate.require_open()
        tokens = self._prompt_tokens(prompt)
        request = Request(
            prompt=tokens,
            prompt_text=prompt if isinstance(prompt, str) else self._vocabulary.text(tokens) if echo else "",
            max_tokens=None if max_tokens is None else whole_number("max_tokens", max_tokens, 0, 2**31 - 1),
            sampling=params,
            stop=StopMatcher(stop),
            logprobs=None if logprobs is None else whole_number("logprobs", logprobs, 0, self.n_vocab),
            echo=echo,
            progress=progress,
        )
        generation = Generation(self._context, self._slots, self._vocabulary, request)
        pieces = self._run(generation)
        if stream:
            return TextStream(generation, pieces)
        for _ in pieces:
            pass
        return generation.completion()

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Completion: ...

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> TextStream: ...

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: bool, **options: Unpack[ChatOptions]
    ) -> Completion | TextStream: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion | TextStream:
        """The model's answer to a conversation: :meth:`generate` through the chat template, without a length limit.

        :param messages: ``[{"role": "user", "content": "..."}, ...]``
        :param template_variables: what the template knows besides, e.g. ``{"enable_thinking": False}``
        :raises ValueError: the list is empty, or the template refuses the conversation
        :raises UnsupportedError: the file has no chat template and none was given
        """
        if isinstance(messages, (str, bytes)) or not messages or not all(isinstance(m, Mapping) for m in messages):
            raise ValueError('messages must be a non-empty list of {"role": ..., "content": ...}')
        self._gate.require_open()
        tokens = self._chat_tokens(messages, template_variables)
        options.setdefault("max_tokens", None)
        return self.generate(tokens, stream=stream, **options)

    def _chat_tokens(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        return encode_chat(self.tokenizer, self.chat_template, messages, **(variables or {}))

    def _run(self, generation: Generation) -> Generator[Piece, None, None]:
        with self._turn(), closing(generation.pieces()) as pieces:
            for piece in pieces:
                with self._gate.suspended():
                    yield piece

    def _seed_of_call(self, seed: int | None) -> int:
        if seed is not None:
            return seed
        return self._seed if self._seed is not None else secrets.randbits(32)

    # -- numbers ---------------------------------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Raw logits after the last of the tokens, float32 ``(n_vocab,)``, a copy."""
        ids = self._prompt_tokens(tokens)
        with self._turn():
            seq, n_reused = self._slots.take(ids)
            self._context.decode(seq, ids[n_reused:])
            return self._context.logits.copy()

    def score(self, tokens: Sequence[int], progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """Natural log probability of each token given those before it, float32 ``(n,)``; NaN for the first."""
        ids = self._prompt_tokens(tokens)
        with self._turn():
            return self._context.score(self._slots.take_empty(), ids, progress)

    def perplexity(self, tokens: Sequence[int]) -> float:
        """exp of the mean negative log probability of all tokens but the first; at most n_ctx tokens.

        :raises ValueError: fewer than two tokens
        :raises ContextFullError: more than n_ctx
        """
        if len(tokens) < 2:
            raise ValueError("perplexity needs at least two tokens: nothing predicts the first")
        return float(np.exp(-self.score(tokens)[1:].astype(np.float64).mean()))

    # -- state -----------------------------------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the current conversation (tokens, keys and values) to a file."""
        with self._turn():
            self._context.save(self._slots.current, path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a saved conversation: a prompt that starts with it processes only the rest.

        The file holds no queries. Under a method that selects by those of the prompt, the next call therefore
        processes the prompt's last ``observe_window`` tokens (snapkv, rkv) or all of them (h2o) again.

        :raises FormatError: the file is damaged, or was made with another model
        :raises ContextFullError: it holds more than n_ctx tokens
        """
        with self._turn():
            self._context.load(self._slots.current, path)

    @property
    def tokens(self) -> list[int]:
        """Tokens of the current conversation that the KV cache holds."""
        with self._turn():
            return self._context.tokens(self._slots.current).tolist()

    def reset(self) -> None:
        """Forget all conversations."""
        with self._turn():
            self._slots.reset()

    def cancel(self) -> None:
        """From another thread: stop the call in progress, if there is one. It ends with ``cancelled``.

        A stream that waits for its consumer ends when it is asked for its next piece.
        """
        if self._gate.busy:
            self._context.cancel()

    def close(self) -> None:
        """Free weights and context, after a call at work in another thread has been stopped.

        An open stream that waits for its consumer is not waited for: its next step raises RuntimeError.

        :raises RuntimeError: called from within a call, by its progress function
        """
        self._gate.close(self._context.cancel, self._opened.close)

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only one that uses the context."""
        with self._gate.turn():
            self._context.clear_cancel()
            self._gate.require_open()  # close() may have cancelled just before that
            yield


def default_model() -> Path:
    """The embedded demo model."""
    from . import demo

    return Path(demo.model_path())
