"""The haystack: stretches of book text, cut into sentences."""

import bisect
import itertools
import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

# The white space after a sentence: not after common titles and initials, and before a capital letter.
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\b[A-Za-z])[.!?][\"')]*(\s+)(?=[\"'(]?[A-Z])")
_LOOKAHEAD = 600  # characters read beyond what is asked for, to find the end of the last sentence


class Sentence(NamedTuple):
    """A sentence and what separates it from the next one: a space, or an empty line."""

    text: str
    separator: str


class Haystack:
    """Book texts to draw stretches from, each book in proportion to its length."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self._ends = list(itertools.accumulate(max(1, len(text)) for text in self.texts))

    def stretch(self, rng: Random, n_chars: int) -> list[Sentence]:
        """Whole sentences of at least ``n_chars`` characters, from one place or, at the end of a book, several."""
        sentences: list[Sentence] = []
        n_drawn = 0
        while n_drawn < n_chars:
            text = self.texts[bisect.bisect_right(self._ends, rng.randrange(self._ends[-1]))]
            start = rng.randrange(max(1, len(text) - min(len(text) // 2, n_chars)))
            segment = text[start : start + (n_chars - n_drawn) + _LOOKAHEAD]
            ends = [match.span(1) for match in SENTENCE_END.finditer(segment)]
            if len(ends) < 3:
                continue
            for (_, begin), (end, next_begin) in itertools.pairwise(ends):
                separator = "\n\n" if "\n" in segment[end:next_begin] else " "
                sentences.append(Sentence(segment[begin:end], separator))
                n_drawn += next_begin - begin
                if n_drawn >= n_chars:
                    break
            sentences[-1] = sentences[-1]._replace(separator="\n\n")
        return sentences
