"""Finding special tokens in a text: the longest token first, as llama.cpp does.

Where special tokens overlap in a text, the longer one wins, even when the shorter one starts further left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set


class SpecialTokens:
    """Splits texts at special tokens.

    Parameters
    ----------
    ids : text -> id of each special token.
    strip_after : ids after which white space in the text is dropped.
    """

    def __init__(self, ids: Mapping[str, int], strip_after: Set[int] = frozenset()) -> None:
        self._ids = ids
        self._strip_after = strip_after
        # Longest first, counted in bytes; of equally long ones the lower id.
        ordered = sorted(ids, key=lambda text: (-len(text.encode()), ids[text]))
        self._rank = {text: rank for rank, text in enumerate(ordered)}
        self._any = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def split(self, text: str) -> list[str | int]:
        """Text and ids in order; no text is empty."""
        pieces: list[str | int] = [text] if text else []
        for special in sorted(self._occurring(text), key=self._rank.__getitem__):
            pieces = [
                part for piece in pieces for part in (self._cut(piece, special) if isinstance(piece, str) else (piece,))
            ]
        return pieces

    def _occurring(self, text: str) -> set[str]:
        """Every special token that occurs in the text, overlapping ones included."""
        found: set[str] = set()
        match = self._any.search(text) if self._any else None
        while match:
            # The longest one that starts here; shorter ones that start here are its beginnings.
            longest = match[0]
            if longest not in found:
                found.update(longest[:n] for n in range(1, len(longest) + 1) if longest[:n] in self._ids)
            match = self._any.search(text, match.start() + 1) if self._any else None
        return found

    def _cut(self, text: str, special: str) -> list[str | int]:
        token = self._ids[special]
        first, *rest = text.split(special)
        pieces: list[str | int] = [first]
        for part in rest:
            pieces += [token, part.lstrip(" \t\n\v\f\r") if token in self._strip_after else part]
        return [piece for piece in pieces if piece != ""]
