"""SentencePiece vocabularies (``tokenizer.ggml.model = llama``): merging by score.

The two neighbours whose concatenation is the token of the highest score are merged, the leftmost on equal scores,
until no two neighbours form a token (Kudo and Richardson 2018, the BPE mode of SentencePiece). Ranked merges, as BPE
libraries take them, cannot express this exactly: equal scores, one token reached by several splits, and tokens with a
character that is no token itself come out differently. So it is done here, on short segments, which are remembered.
"""

from __future__ import annotations

from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise

from .token_table import TokenTable

_N_REMEMBERED = 1 << 16  # segments
_LONGEST_REMEMBERED = 64  # characters


class SpmEncoder:
    """Text with U+2581 for spaces -> ids."""

    def __init__(self, table: TokenTable) -> None:
        self._ids = table.ids
        self._scores = table.scores
        self._unk_id = table.unk_id
        self._byte_ids = [table.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        # Characters that stand side by side in some token. Nothing is merged across any other pair.
        self._joined = set(chain.from_iterable(map(pairwise, table.tokens)))
        self._remembered = lru_cache(_N_REMEMBERED)(self._encode_segment)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text.

        :raises ValueError: a character has neither a token nor byte tokens, and the vocabulary has no unknown token
        """
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        joined = self._joined
        cuts = [i for i, pair in enumerate(pairwise(text), 1) if pair not in joined]
        ids: list[int] = []
        for start, end in pairwise((0, *cuts, len(text))):
            segment = text[start:end]
            ids += self._remembered(segment) if end - start <= _LONGEST_REMEMBERED else self._encode_segment(segment)
        return ids

    def _encode_segment(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for symbol in self._merge(text):
            token = self._ids.get(symbol)
            if token is None:
                ids += self._fallback(symbol)
            else:
                ids.append(token)
        return tuple(ids)

    def _merge(self, text: str) -> list[str]:
        """The symbols that are left when no two neighbours form a token."""
        n = len(text)
        # A symbol is text[start:end[start]]; end is 0 where no symbol starts. before[start]: where the previous starts.
        end = list(range(1, n + 1))
        before = list(range(-1, n - 1))
        ids, scores = self._ids, self._scores
        # (-score, start of left, start of right, end of right), best first.
        queue: list[tuple[float, int, int, int]] = []
        for i in range(n - 1):
            token = ids.get(text[i : i + 2])
            if token is not None:
                queue.append((-scores[token], i, i + 1, i + 2))
        heapify(queue)

        while queue:
            _, left, right, stop = heappop(queue)
            if end[left] != right or end[right] != stop:
                continue  # one of them was merged since
            end[left], end[right] = stop, 0
            if stop < n:
                before[stop] = left
                token = ids.get(text[left : end[stop]])
                if token is not None:
                    heappush(queue, (-scores[token], left, stop, end[stop]))
            previous = before[left]
            if previous >= 0:
                token = ids.get(text[previous:stop])
                if token is not None:
                    heappush(queue, (-scores[token], previous, left, stop))
        return [text[start:stop] for start, stop in enumerate(end) if stop]

    def _fallback(self, character: str) -> list[int]:
        """Byte tokens of a character without a token; the unknown token where the vocabulary lacks one of them."""
        found = [token for byte in character.encode() if (token := self._byte_ids[byte]) is not None]
        if len(found) == len(character.encode()):
            return found
        if self._unk_id is None:
            raise ValueError(f"the vocabulary has no token for {character!r}, no byte tokens and no unknown token")
        return [self._unk_id]
