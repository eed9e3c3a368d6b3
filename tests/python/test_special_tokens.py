"""Splitting at special tokens, against the plain definition."""

from __future__ import annotations

import random

from fasa_py.special_tokens import SpecialTokens


def split_plainly(text: str, ids: dict[str, int]) -> list[str | int]:
    """One special token after another, the longest first (llama.cpp's definition)."""
    pieces: list[str | int] = [text]
    for special in sorted(ids, key=lambda special: (-len(special.encode()), ids[special])):
        found: list[str | int] = []
        for piece in pieces:
            while isinstance(piece, str) and special in piece:
                left, _, piece = piece.partition(special)
                found += [left, ids[special]]
            found.append(piece)
        pieces = found
    return [piece for piece in pieces if piece != ""]


def test_random_overlapping_tokens_split_by_the_definition() -> None:
    rng = random.Random(4)
    for _ in range(400):
        names = {"".join(rng.choices("ab<é", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 8))}
        ids = {name: i for i, name in enumerate(sorted(names))}
        special = SpecialTokens(ids)
        for _ in range(10):
            text = "".join(rng.choices("ab<éx", k=rng.randint(0, 25)))
            assert special.split(text) == split_plainly(text, ids), (text, ids)


def test_characters_with_a_meaning_in_patterns_have_none_here() -> None:
    special = SpecialTokens({"[x]": 1, ".*": 2, "\\": 3, "(": 4})
    assert special.split("x[x]y.*\\((") == ["x", 1, "y", 2, 3, 4, 4]


def test_white_space_after_some_tokens_is_dropped() -> None:
    special = SpecialTokens({"<a>": 1, "<b>": 2}, frozenset((1,)))
    assert special.split("<a> \n\t x <b> y<a>  ") == [1, "x ", 2, " y", 1]
