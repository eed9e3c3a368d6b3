"""Families whose answer follows from the text: chains of variables, labels by example."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

from .facts import FactGroup, Facts, Question, question_count, sample_questions
from .keys import Split, digits, distinct_keys, nonsense_label, variable_name
from .words import CATEGORIES


def vartrack(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Chains of assignments, ``VAR B = VAR A.``; a variable is resolved, or all of one value are named."""
    n_chains = rng.randint(1, max(1, min(4, room // 300)))
    n_hops = rng.randint(1, 4)
    length = rng.choice([3, 3, 4])
    names = distinct_keys(split, lambda: variable_name(rng, length), n_chains * (n_hops + 1))
    groups, questions = [], []
    for first in range(0, n_chains * (n_hops + 1), n_hops + 1):
        chain, value = names[first : first + n_hops + 1], digits(rng, 5, 5)
        assignments = [f"VAR {chain[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(chain)]
        groups.append(FactGroup(assignments, ordered=True))
        hop = rng.randint(1, n_hops)
        question = rng.choice(
            [
                f"What is the value of VAR {chain[hop]}? Work it out step by step.",
                f"Resolve VAR {chain[hop]} step by step.",
            ]
        )
        backwards = " ".join(reversed(assignments[: hop + 1]))
        questions.append(Question(question, f"{backwards} The value of VAR {chain[hop]} is {value}."))
        question = rng.choice(
            [f"Which variables have the value {value}?", f"Find all variables that are assigned the value {value}."]
        )
        answer = " ".join(assignments) + " The variables are " + ", ".join(chain) + "."
        questions.append(Question(question, answer))
    return Facts(groups=groups, questions=sample_questions(rng, questions, n_questions))


def _labelled_words(rng: Random) -> tuple[int, Callable[[int], str]]:
    """A kind of classification: the number of its classes, and a source of words of a class."""
    kind = rng.choice(["category"] * 5 + ["parity", "size"])
    if kind == "category":
        names = rng.sample(sorted(CATEGORIES), rng.randint(2, 5))
        return len(names), lambda c: rng.choice(CATEGORIES[names[c]])
    if kind == "parity":
        return 2, lambda c: str(rng.randrange(5, 499) * 2 + c)
    return 2, lambda c: str(rng.randint(10, 49) if c == 0 else rng.randint(50, 99))


def fewshot(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Examples ``word -> label`` in one piece; further words are to be labelled."""
    n = rng.randint(12, max(13, min(160, room // rng.choice([24, 40, 80]))))
    n_classes, make_word = _labelled_words(rng)
    labels = distinct_keys(split, lambda: nonsense_label(rng), n_classes)
    n_asked = question_count(rng, n_questions, 8)
    unseen = {make_word(rng.randrange(n_classes)) for _ in range(2)} if rng.random() < 0.5 else set()
    lines = []
    for _ in range(n):
        c = rng.randrange(n_classes)
        word = make_word(c)
        if word not in unseen:
            lines.append(f"{word} -> {labels[c]}")
    questions = []
    for _ in range(n_asked):
        c = rng.randrange(n_classes)
        word = make_word(c)
        question = rng.choice(
            [f"What is the label of {word}?", f"Label this by the examples: {word}", f"Which label fits {word}?"]
        )
        questions.append(Question(question, f"{word} -> {labels[c]}"))
    return Facts(blocks=["\n".join(lines)], questions=questions)
