"""BPE and WordPiece vocabularies, encoded by the ``tokenizers`` library."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from .pretokenizers import PreTokenizer
from .token_table import TokenTable

_NEWLINES = re.compile(r"(\n+)")


def _byte_characters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in byte-level vocabularies (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}
# Bytes that occur in no UTF-8 text.
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


class LibraryEncoder:
    """Texts -> ids through one tokenizer of the library, which runs without the GIL."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text.

        :raises ValueError: the library gave up on a text
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            # A panic in the library's Rust code is no Exception, and its type cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the tokenizers library could not split the text: {error}") from None
        return [encoding.ids for encoding in encodings]


class NewlineEncoder:
    """Takes a run of newlines that is a token whole, and leaves the rest to another encoder."""

    def __init__(self, inner: LibraryEncoder, ids: dict[str, int]) -> None:
        self._inner = inner
        self._ids = ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        return [list(self._encode(text)) for text in texts]

    def _encode(self, text: str) -> Iterator[int]:
        pieces = [piece for piece in _NEWLINES.split(text) if piece]
        whole = [self._ids.get(piece) if piece[0] == "\n" else None for piece in pieces]
        rest = iter(self._inner.encode_batch([p for p, token in zip(pieces, whole, strict=True) if token is None]))
        for token in whole:
            yield from next(rest) if token is None else (token,)


def build_bpe(table: TokenTable, pretokenizer: PreTokenizer) -> LibraryEncoder | NewlineEncoder:
    """Encoder of a vocabulary with merges (``gpt2``, ``gemma4``)."""
    byte_level = pretokenizer.bytes_as_chars
    tokenizer = Tokenizer(
        models.BPE(
            vocab=table.ids,
            merges=[(left, right) for left, _, right in (merge.partition(" ") for merge in table.merges)],
            ignore_merges=pretokenizer.ignore_merges,
            byte_fallback=not byte_level,
        )
    )
    _warn_of_missing_bytes(table, byte_level)
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pretokenizer.patterns
    ]
    if byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    encoder = LibraryEncoder(tokenizer)
    return NewlineEncoder(encoder, table.ids) if pretokenizer.newline_runs_whole else encoder


def _warn_of_missing_bytes(table: TokenTable, byte_level: bool) -> None:
    names = BYTE_CHARACTERS if byte_level else {byte: f"<0x{byte:02X}>" for byte in range(256)}
    missing = [byte for byte, name in names.items() if name not in table.ids and byte not in _NEVER_IN_UTF8]
    if missing:
        warnings.warn(
            f"tokenizer.ggml.tokens has no token for {len(missing)} bytes (the first: 0x{min(missing):02X}): "
            "characters that need them are left out of every text",
            stacklevel=5,
        )


def build_wordpiece(table: TokenTable) -> LibraryEncoder:
    """Encoder of a ``bert`` vocabulary, in which U+2581 marks the start of a word."""
    tokenizer = Tokenizer(
        models.WordPiece(
            vocab=table.ids,
            unk_token=table.unknown_text,
            continuing_subword_prefix="",
            max_input_chars_per_word=1 << 30,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=table.lowercase, strip_accents=table.strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False),
        ]
    )
    return LibraryEncoder(tokenizer)
