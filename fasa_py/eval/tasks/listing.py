"""Families with long answers: every step of the generation is a retrieval."""

import itertools
from random import Random

from .facts import FactGroup, Facts, Question
from .keys import Split
from .words import ADJECTIVES, NOUNS


def items(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Numbered items scattered over the text; all, or a range, are to be listed in order."""
    n = rng.randint(8, max(9, min(200, room // rng.choice([30, 34, 60]))))
    words, three_digits = rng.choice([ADJECTIVES, NOUNS, NOUNS]), rng.random() < 0.5
    low, high = (100, 999) if three_digits else (10, 99)
    lines = [f"Item {i}: {rng.choice(words)} {rng.randint(low, high)}" for i in range(1, n + 1)]
    first, last = 1, n
    if rng.random() < 0.35:
        first = rng.randint(1, n - 3)
        last = rng.randint(first + 2, n)
    question = rng.choice(
        [
            f"Write out all the items in order, from item {first} to item {last}.",
            f"List items {first} to {last} in order.",
        ]
    )
    return Facts(
        groups=[FactGroup([line + "." for line in lines], ordered=rng.random() < 0.3)],
        questions=[Question(question, "\n".join(lines[first - 1 : last]))],
    )


def runsum(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Numbered entries scattered over the text; their running total, modulo 100, is to be logged in order."""
    n = rng.randint(8, max(9, min(150, room // rng.choice([36, 44, 70]))))
    values = [rng.randint(1, 99) for _ in range(n)]
    totals = itertools.accumulate(values)
    log = [f"Entry {i}: {v}, total {t % 100}" for i, (v, t) in enumerate(zip(values, totals, strict=True), 1)]
    question = rng.choice(
        [
            f"Write a log of the running total, modulo 100, over entries 1 to {n}.",
            f"Go through entries 1 to {n} in order and keep the running total modulo 100.",
        ]
    )
    entries = [f"Entry {i}: {value}." for i, value in enumerate(values, 1)]
    return Facts(
        groups=[FactGroup(entries, ordered=rng.random() < 0.3)], questions=[Question(question, "\n".join(log))]
    )
