"""Text to token ids and back, by the vocabulary of a GGUF file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

from .bpe import CHARACTER_BYTES, build_bpe, build_wordpiece
from .gguf import GGUF
from .special_tokens import SpecialTokens
from .spm import SpmEncoder
from .stream import StreamDecoder
from .token_table import TokenTable, TokenType

_SPACE = "▁"  # stands for a space in vocabularies that store plain text


class MetadataSource(Protocol):
    """What a tokenizer needs of a file: ``fasa_py.gguf.GGUF`` is one."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class _Encoder(Protocol):
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Tokenizer:
    """The tokenizer of a GGUF file, also of one that holds only a vocabulary. May be used from several threads.

    Attributes
    ----------
    model_name : ``tokenizer.ggml.model``: "gpt2", "llama", "gemma4" or "bert".
    pre : ``tokenizer.ggml.pre``, "" when absent.
    n_vocab : number of tokens.
    bos_id, eos_id, eot_id, eom_id, unk_id, pad_id : id or None.
    eog_ids : frozenset of the ids that end generation.
    add_bos, add_eos : whether the model expects a text to start with BOS, to end with EOS.

    Parameters
    ----------
    source
        Path of a GGUF file, or an object with its ``metadata``.

    Raises
    ------
    FormatError
        The tokenizer metadata is damaged or incomplete; the text names the key.
    UnsupportedError
        A kind of tokenizer that is not implemented.
    """

    def __init__(self, source: str | os.PathLike[str] | MetadataSource) -> None:
        if isinstance(source, (str, os.PathLike)):
            with GGUF(source) as file:
                self._table = table = TokenTable(file.metadata)
        else:
            self._table = table = TokenTable(source.metadata)
        self.model_name, self.pre, self.n_vocab = table.model, table.pre, len(table.tokens)
        self.bos_id, self.eos_id, self.eot_id, self.eom_id = table.bos_id, table.eos_id, table.eot_id, table.eom_id
        self.unk_id, self.pad_id = table.unk_id, table.pad_id
        self.eog_ids = table.eog_ids
        self.add_bos, self.add_eos = table.add_bos, table.add_eos
        # Byte-level vocabularies have a character for a space as for any byte.
        self._plain_text = table.pretokenizer is None or not table.pretokenizer.bytes_as_chars
        self._escapes_spaces = self._plain_text and table.model != "bert"
        self._bytes: list[bytes | None] = [None] * self.n_vocab
        self._lock = threading.Lock()
        self._encoder: _Encoder | None = None

    def encode(self, text: str, add_bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text
            Any text without lone surrogates.
        add_bos
            Put BOS first (whether the model expects that is ``add_bos`` of the tokenizer).
        special
            Read the text of control tokens as these tokens. User-defined tokens are always read as such.

        Raises
        ------
        ValueError
            A lone surrogate, a vocabulary without BOS, or text for which it has no token at all.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(f"the text has a lone surrogate, U+{code:04X}, at position {error.start}") from None
        if add_bos and self.bos_id is None:
            raise ValueError("add_bos: this vocabulary has no BOS token")
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        pieces = (self._control_tokens if special else self._user_tokens).split(text)
        texts = [self._prepared(piece) for piece in pieces if isinstance(piece, str)]
        encoded = iter(self._ready_encoder().encode_batch(texts) if texts else ())
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += next(encoded)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD.

        The inverse of :meth:`encode`: where encoding puts a space before a text, one leading space is taken off. (A
        :meth:`stream`, which continues a text, keeps it.)

        :param skip_special: leave out control and unknown tokens instead of showing their text
        :raises ValueError: an id is not in the vocabulary
        """
        shown = self._shown_bytes if skip_special else self.token_bytes
        data = b"".join(map(shown, ids))
        if self._table.add_space_prefix:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def stream(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes ids one by one; see :meth:`decode` for the parameter."""
        return StreamDecoder(self._shown_bytes if skip_special else self.token_bytes)

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it. :raises ValueError: the id is not in the vocabulary"""
        return self._table.tokens[self._checked(token)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the token adds to a text; those of its name for special tokens, none for unused ones.

        :raises ValueError: the id is not in the vocabulary
        """
        known = self._bytes[self._checked(token)]
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def is_special(self, token: int) -> bool:
        """Whether it is a control or unknown token. :raises ValueError: the id is not in the vocabulary"""
        return self._table.types[self._checked(token)] in (TokenType.CONTROL, TokenType.UNKNOWN)

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.n_vocab} tokens")
        return token

    def _shown_bytes(self, token: int) -> bytes:
        return b"" if self.is_special(token) else self.token_bytes(token)

    def _spell(self, token: int) -> bytes:
        text, kind = self._table.tokens[token], self._table.types[token]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
            return text.encode()
        if kind == TokenType.BYTE:
            return bytes((int(text[3:5], 16),))
        if kind != TokenType.NORMAL:
            return b""
        if self._plain_text:
            return text.replace(_SPACE, " ").encode()
        # A character outside the byte alphabet stands for itself.
        return b"".join(
            character.encode() if (byte := CHARACTER_BYTES.get(character)) is None else bytes((byte,))
            for character in text
        )

    def _prepared(self, text: str) -> str:
        """A text between special tokens, spaces written as the vocabulary writes them."""
        if self._table.add_space_prefix:
            text = " " + text
        return text.replace(" ", _SPACE) if self._escapes_spaces else text

    def _ready_encoder(self) -> _Encoder:
        with self._lock:
            if self._encoder is None:
                self._encoder = self._build_encoder()
            return self._encoder

    def _build_encoder(self) -> _Encoder:
        if self.model_name == "llama":
            return SpmEncoder(self._table)
        if self._table.pretokenizer is None:
            return build_wordpiece(self._table)
        return build_bpe(self._table, self._table.pretokenizer)

    @cached_property
    def _user_tokens(self) -> SpecialTokens:
        return self._tokens_of(TokenType.USER_DEFINED)

    @cached_property
    def _control_tokens(self) -> SpecialTokens:
        return self._tokens_of(TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN)

    def _tokens_of(self, *types: TokenType) -> SpecialTokens:
        table = self._table
        ids = {table.tokens[token]: token for token, kind in enumerate(table.types) if kind in types}
        return SpecialTokens(ids, table.strip_after)
