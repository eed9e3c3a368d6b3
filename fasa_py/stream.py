"""Token ids to text, one at a time, never cutting a character in two."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Made by ``Tokenizer.stream()``. Bytes of an unfinished UTF-8 sequence wait for the next token."""

    def __init__(self, shown_bytes: Callable[[int], bytes]) -> None:
        self._shown_bytes = shown_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; invalid bytes become U+FFFD.

        :raises ValueError: the id is not in the vocabulary
        """
        return self._decoder.decode(self._shown_bytes(token))

    def flush(self) -> str:
        """End of the text: an unfinished sequence becomes U+FFFD. The decoder then starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
