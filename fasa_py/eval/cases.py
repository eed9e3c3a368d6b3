"""Generated tasks as cases of an evaluation: a prompt, the answer, and how an answer of other words is scored."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .metrics import contains_all
from .subject import Subject
from .tasks import FAMILIES, Haystack, eval_example

SHORT_FAMILIES = tuple(family for family in FAMILIES if family not in ("items", "runsum"))
_FIRST_SEED = 20_000  # of the cases with seed 0; training and the fixed cases have others


@dataclass(frozen=True)
class Case:
    """One question.

    :param answer: token ids of the expected answer with its end token, or empty: only the score can tell
    :param score: 0..1 for a generated answer
    """

    task: str
    length: int
    name: str
    prompt: list[int]
    answer: list[int]
    score: Callable[[str], float]
    metric: str
    max_tokens: int
    n_cut: int = 0  # prompt tokens left out because the context is too short


def _value_or_names(answer: str) -> list[str]:
    """Of a variable the value, of a value the variables."""
    return re.findall(r"is (\d+)\.$", answer) or answer.rsplit(" are ", 1)[-1].strip(".").split(", ")


def _found(pattern: str) -> Callable[[str], list[str]]:
    return lambda answer: re.findall(pattern, answer)


# What has to stand in an answer, whatever its wording: from the answer that the generator expects.
_ESSENTIALS: dict[str, Callable[[str], list[str]]] = {
    "passkey": _found(r"\d+"),
    "multikey": _found(r"(\w+)\.?$"),
    "multivalue": _found(r"\d{4,}"),
    "vartrack": _value_or_names,
    "kv": _found(r': "(.*)"$'),
    "fewshot": _found(r"-> (.*)$"),
    "count": _found(r"has (\d+ \w+)\.$"),
    "where": _found(r"the (\w+)"),
    "quote": lambda answer: [answer],
    "items": str.splitlines,
    "runsum": _found(r"total \d+"),
}


def essentials(task: str, answer: str) -> list[str]:
    """The parts of an expected answer that any right answer contains."""
    return _ESSENTIALS[task](answer)


def make_case(task: str, length: int, index: int, seed: int, subject: Subject, haystack: Haystack) -> Case:
    """The case number ``index`` of a family: always the same for a tokenizer, a haystack and a seed.

    :raises ValueError: an unknown family
    """
    if task not in FAMILIES:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(FAMILIES)}")
    document = eval_example(task, length, _FIRST_SEED + 1000 * seed + index, haystack, subject.encode)
    ((user, expected),) = document.turns
    end = subject.tokenizer.eot_id if subject.tokenizer.eot_id is not None else subject.tokenizer.eos_id
    answer = subject.encode(expected) + ([end] if end is not None else [])
    parts = essentials(task, expected)
    return Case(
        task, length, str(index), subject.ask(user), answer, lambda text: contains_all(text, parts), "contains",
        max_tokens=2 * len(answer) + 32,
    )  # fmt: skip
