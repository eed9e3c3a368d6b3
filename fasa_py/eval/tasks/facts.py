"""What a task family makes: facts to hide in the text, and questions about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from .keys import Split


class Question(NamedTuple):
    text: str
    answer: str


class FactGroup(NamedTuple):
    """Facts scattered over the text, in the order given or in any order."""

    facts: list[str]
    ordered: bool


@dataclass
class Facts:
    groups: list[FactGroup] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)  # each placed in one piece, as a paragraph
    questions: list[Question] = field(default_factory=list)


# (rng, room, split, n_questions) -> Facts. room: tokens that the task's part of the document may take.
# n_questions: how many to ask; None draws a number.
Family = Callable[[Random, int, Split, int | None], Facts]


def question_count(rng: Random, n_questions: int | None, n_possible: int) -> int:
    """``n_questions``, or a number drawn when it is None, at most ``n_possible``."""
    return min(n_possible, n_questions or rng.choice([1, 2, 3, 4, 6, 8, 12]))


def sample_questions(rng: Random, questions: list[Question], n_questions: int | None) -> list[Question]:
    """Some of the possible questions, in random order."""
    return rng.sample(questions, question_count(rng, n_questions, len(questions)))
