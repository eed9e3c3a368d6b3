"""What generation needs of a tokenizer, also for a model file without a vocabulary (then: token ids only)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from .errors import FormatError, UnsupportedError
from .gguf import GGUF
from .tokenizer import Tokenizer


class TextDecoder(Protocol):
    """Token ids to whole characters."""

    def push(self, token: int, /) -> str: ...

    def flush(self) -> str: ...


class _NoText:
    """The decoder of a model without a vocabulary: no text at all."""

    def push(self, _token: int, /) -> str:
        return ""

    def flush(self) -> str:
        return ""


class Vocabulary:
    """The tokenizer of a model file, or a clear error for whoever needs one that is not there.

    :param gguf: the model file
    :param n_vocab: rows of the model's tensors
    :raises FormatError: the vocabulary is damaged, or of another size
    """

    def __init__(self, gguf: GGUF, n_vocab: int) -> None:
        self._tokenizer: Tokenizer | None = None
        self._missing = "this model file has no vocabulary: prompts must be lists of token ids"
        self.eog_ids: frozenset[int] = frozenset()
        if gguf.metadata.get("tokenizer.ggml.model", "none") == "none":
            return
        try:
            self._tokenizer = Tokenizer(gguf)
        except UnsupportedError as error:
            self._missing = f"{error}; prompts must be lists of token ids"
            logging.getLogger("fasa_py").warning("%s", self._missing)
            return
        if self._tokenizer.n_vocab != n_vocab:
            raise FormatError(f"the vocabulary has {self._tokenizer.n_vocab} tokens, the model's tensors {n_vocab}")
        self.eog_ids = self._tokenizer.eog_ids

    @property
    def tokenizer(self) -> Tokenizer:
        """:raises UnsupportedError: the file has none, or one that is not implemented"""
        if self._tokenizer is None:
            raise UnsupportedError(self._missing)
        return self._tokenizer

    def stream(self) -> TextDecoder:
        return self._tokenizer.stream() if self._tokenizer is not None else _NoText()

    def token_bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token) if self._tokenizer is not None else b""

    def is_special(self, token: int) -> bool:
        return self._tokenizer is not None and self._tokenizer.is_special(token)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens; empty without a vocabulary."""
        return self._tokenizer.decode(tokens) if self._tokenizer is not None else ""
