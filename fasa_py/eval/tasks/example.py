"""Fixed evaluation examples: one question in a document of a given length."""

from random import Random

from .document import Document, Encode, make_document
from .haystack import Haystack


def eval_example(family: str, limit: int, seed: int, haystack: Haystack, encode: Encode) -> Document:
    """One question of the ``eval`` split in a document of about ``limit`` tokens, a function of its arguments."""
    rng = Random(f"{family}/{limit}/{seed}")
    while True:
        fill = rng.uniform(0.93, 0.985)
        document = make_document(rng, haystack, encode, limit, "eval", [family], n_questions=1, fill=fill)
        if document:
            return document
