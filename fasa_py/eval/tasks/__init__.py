"""Seeded long-context tasks hidden in book text: one generator for training and for evaluation.

A document is a chat. The first user turn is an optional introduction, a context and a question; the assistant turn is
the answer; further question/answer turns may follow about the same context. The context is book text (the haystack)
with facts inserted between its sentences. Keys (adjective-noun pairs, variable names, hex keys, labels) whose CRC-32
is a multiple of 8 occur in the ``eval`` split only, and evaluation haystacks come from held-out books.

Everything is a function of the random generator passed in: the same arguments give the same document.
"""

from .document import Document, make_document
from .example import eval_example
from .families import FAMILIES
from .haystack import Haystack

__all__ = ["FAMILIES", "Document", "Haystack", "eval_example", "make_document"]
