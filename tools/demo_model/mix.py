"""What training draws: documents of the mix, and rows of tokens."""

from random import Random

import numpy as np
from numpy.typing import NDArray

from fasa_py.eval.tasks import FAMILIES, Document, Haystack, make_document
from fasa_py.eval.tasks.document import Encode, encode_chat
from fasa_py.eval.tasks.families import TRAINING_WEIGHTS
from fasa_py.eval.tasks.vocabulary import BOS_ID

_CONTINUE = "continue"
_LONG_ANSWERS = ("items", "runsum")  # not joined to more than one other family


def continuation(rng: Random, haystack: Haystack, encode: Encode, limit: int) -> Document | None:
    """Plain prose in chat form: a passage, and the passage that follows it."""
    n_given = rng.randint(100, max(120, limit // 3))
    n_asked = rng.randint(60, max(80, min(limit - n_given - 60, 1500)))
    sentences = haystack.stretch(rng, int((n_given + n_asked) * 3.0))
    if len(sentences) < 4:
        return None
    cut = max(1, min(len(sentences) - 1, int(len(sentences) * n_given / (n_given + n_asked))))
    given, asked = ("".join(s.text + s.separator for s in part).strip() for part in (sentences[:cut], sentences[cut:]))
    prompt = rng.choice(
        ["Continue this story:\n\n{}", "{}\n\nContinue the text.", "Write the next part of this passage:\n\n{}"]
    )
    return encode_chat([(prompt.format(given), asked)], [_CONTINUE], encode, limit)


def _draw_families(rng: Random, n: int) -> list[str]:
    families: list[str] = []
    while len(families) < n:
        family = rng.choices(FAMILIES, list(TRAINING_WEIGHTS.values()))[0]
        crowded = family in _LONG_ANSWERS and n > 2 and families
        if family not in families and not crowded:
            families.append(family)
    return families


def train_document(rng: Random, haystack: Haystack, encode: Encode, limit: int) -> Document | None:
    """A training document of at most ``limit`` tokens: 4 % continuations, the rest tasks, one or several families.

    None after twenty draws that came out too long.
    """
    for _ in range(20):
        kind = rng.random()
        if kind < 0.04:
            document = continuation(rng, haystack, encode, limit)
        else:
            n = 1 if kind < 0.5 or limit < 700 else rng.choice([2, 2, 3, 4])
            families = _draw_families(rng, n)
            fill = rng.uniform(0.85, 1.0) if rng.random() < 0.7 else rng.uniform(0.3, 0.9)
            document = make_document(rng, haystack, encode, limit, "train", families, fill=fill)
        if document:
            return document
    return None


def _answer_weight(n_tokens: int, n_answer: int) -> float:
    """Weight of an answer token: the whole answer counts for about a third of the document."""
    return float(np.clip(0.3 * n_tokens / max(1, n_answer), 2.0, 24.0))


def train_row(
    rng: Random, haystack: Haystack, encode: Encode, corpus: NDArray[np.uint16], length: int, p_text: float = 0.45
) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """Tokens ``uint16 (length + 1,)`` and the weight of each target ``float16 (length,)``.

    With probability ``p_text`` the row is book text; otherwise a training document, filled up with book text.
    """
    row, weights = np.empty(length + 1, np.uint16), np.ones(length, np.float16)
    n = 0
    document = train_document(rng, haystack, encode, length) if rng.random() >= p_text else None
    if document:
        n = len(document.ids)
        row[:n] = document.ids
        answers = np.asarray(document.is_answer[1:], bool)
        if document.tasks != [_CONTINUE]:
            weights[: n - 1][answers] = _answer_weight(n, int(answers.sum()))
    if n <= length:
        n_text = length - n
        start = rng.randrange(len(corpus) - n_text - 1)
        row[n] = BOS_ID
        row[n + 1 :] = corpus[start : start + n_text]
        if n:
            weights[n - 1] = 0  # the next document's BOS cannot be predicted
    return row, weights
