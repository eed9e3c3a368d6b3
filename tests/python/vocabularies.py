"""Small vocabularies made for tests, and slow encoders to compare the real ones with."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fasa_py.bpe import BYTE_CHARACTERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass
class Source:
    """What ``Tokenizer`` takes instead of a path."""

    metadata: dict[str, Any]


def keys(**values: Any) -> dict[str, Any]:
    """``tokenizer.ggml.*`` metadata."""
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def spelled(text: str) -> str:
    """A text as byte-level vocabularies spell it."""
    return "".join(BYTE_CHARACTERS[byte] for byte in text.encode())


def byte_level(merges: Sequence[str] = (), special: Mapping[str, int] | None = None, **more: Any) -> Source:
    """A ``gpt2`` vocabulary: ids 0..255 are the bytes, then one token a merge, then the special ones (text -> type)."""
    special = special or {}
    merged = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    tokens = [BYTE_CHARACTERS[byte] for byte in range(256)] + merged + list(special)
    types = [NORMAL] * (256 + len(merged)) + list(special.values())
    given = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": list(merges)}
    return Source(keys(**{**given, "token_type": np.array(types, np.int32), **more}))


def sentencepiece(
    pieces: Mapping[str, float], special: Mapping[str, int] | None = None, with_bytes: bool = True, **more: Any
) -> Source:
    """A ``llama`` vocabulary: <unk>, <s>, </s>, the byte tokens, the special ones, then the pieces (text -> score)."""
    special = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **(special or {})}
    if with_bytes:
        special |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    given = {
        "model": "llama",
        "tokens": [*special, *pieces],
        "scores": np.array([0.0] * len(special) + list(pieces.values()), np.float32),
        "token_type": np.array([*special.values(), *[NORMAL] * len(pieces)], np.int32),
    }
    return Source(keys(**{**given, **more}))


def merge_by_score(text: str, pieces: Mapping[str, float]) -> list[str]:
    """SentencePiece merging, one best pair at a time; the leftmost of equals."""
    symbols = list(text)
    while True:
        scores = [pieces.get(a + b) for a, b in pairwise(symbols)]
        known = [score for score in scores if score is not None]
        if not known:
            return symbols
        i = scores.index(max(known))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def merge_by_rank(word: str, merges: Sequence[str]) -> list[str]:
    """BPE merging, one best pair at a time; the leftmost of equals, the first of a merge listed twice."""
    symbols = list(word)
    while True:
        ranks = [merges.index(f"{a} {b}") if f"{a} {b}" in merges else len(merges) for a, b in pairwise(symbols)]
        if not ranks or min(ranks) == len(merges):
            return symbols
        i = ranks.index(min(ranks))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


# One character stands for all non-ASCII ones of a category, as in llama.cpp, so that Python's re can split by category.
_STAND_INS = {"L": "\ue000", "N": "\ue001", "M": "\ue002", "P": "\ue003", "S": "\ue004"}
_ASCII = {
    "L": "A-Za-z", "N": "0-9", "M": "", "P": r"!-#%-*,-/:;?@\[\\\]_{}", "S": r"$+<=>^`|~",
}  # fmt: skip


def _collapsed(character: str, by_category: bool) -> str:
    if ord(character) < 128:
        return character
    if character.isspace():
        return "\x0b"
    return _STAND_INS.get(unicodedata.category(character)[0], "\ue005") if by_category else character


def split_words(text: str, patterns: Sequence[str]) -> list[str]:
    r"""Split by each pattern in turn, matches and gaps alike becoming pieces. Of \p only L, N, M, P and S are known."""
    pieces = [text]
    for pattern in patterns:
        inside = re.sub(r"\[[^\]]*\]", lambda m: re.sub(r"\\p\{(.)\}", _members, m[0]), pattern)
        expression = re.compile(re.sub(r"\\p\{(.)\}", lambda m: f"[{_members(m)}]", inside), re.ASCII)
        by_category = "\\p" in pattern
        pieces = [part for piece in pieces for part in _cut(piece, expression, by_category)]
    return pieces


def _members(match: re.Match[str]) -> str:
    return _ASCII[match[1]] + _STAND_INS[match[1]]


def _cut(text: str, expression: re.Pattern[str], by_category: bool) -> list[str]:
    edges = [0, len(text)]
    for match in expression.finditer("".join(_collapsed(character, by_category) for character in text)):
        edges += match.span()
    edges = sorted(set(edges))
    return [text[a:b] for a, b in pairwise(edges)]
