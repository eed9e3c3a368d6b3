"""Families that follow a state through the text: who has how many, who is where."""

from random import Random

from .facts import FactGroup, Facts, Question, sample_questions
from .keys import Split
from .words import NAMES, OBJECTS, PLACES


class _Purses:
    """How many things each person has, the facts told so far, and each person's steps for the answer."""

    def __init__(self, things: str) -> None:
        self.things = things
        self.have: dict[str, int] = {}
        self.steps: dict[str, list[str]] = {}
        self.facts: list[str] = []

    def start(self, person: str, n: int) -> None:
        self.have[person] = n
        self.facts.append(f"{person} starts with {n} {self.things}.")
        self.steps[person] = [f"{person} starts with {n}."]

    def find(self, person: str, n: int) -> None:
        self.facts.append(f"{person} finds {n} more {self.things}.")
        self._change(person, n, f"{person} finds {n}")

    def lose(self, person: str, n: int) -> None:
        self.facts.append(f"{person} loses {n} {self.things}.")
        self._change(person, -n, f"{person} loses {n}")

    def give(self, giver: str, taker: str, n: int) -> None:
        self.facts.append(f"{giver} gives {n} {self.things} to {taker}.")
        self._change(giver, -n, f"{giver} gives {n} to {taker}")
        self._change(taker, n, f"{giver} gives {n} to {taker}")

    def _change(self, person: str, n: int, event: str) -> None:
        self.have[person] += n
        self.steps[person].append(f"{event}, so {self.have[person]}.")


def count(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Persons find, lose and give away things; the number one has in the end is worked out step by step."""
    persons = rng.sample(NAMES, rng.randint(2, max(2, min(5, room // 200))))
    purses = _Purses(rng.choice(OBJECTS))
    for person in persons:
        purses.start(person, rng.randint(10, 50))
    for _ in range(rng.randint(2, max(3, min(14, room // 100)))):
        person, n, event = rng.choice(persons), rng.randint(1, 9), rng.random()
        if event < 0.4:
            purses.find(person, n)
        elif purses.have[person] < n:
            continue
        elif event < 0.7:
            purses.lose(person, n)
        else:
            purses.give(person, rng.choice([other for other in persons if other != person]), n)
    questions = []
    for person in persons:
        question = rng.choice(
            [
                f"How many {purses.things} does {person} have in the end? Think step by step.",
                f"Work out step by step how many {purses.things} {person} has now.",
            ]
        )
        answer = " ".join(purses.steps[person]) + f" {person} has {purses.have[person]} {purses.things}."
        questions.append(Question(question, answer))
    return Facts(
        groups=[FactGroup(purses.facts, ordered=True)], questions=sample_questions(rng, questions, n_questions)
    )


def where(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Persons walk from place to place; asked for are a person's places, or the last one."""
    persons = rng.sample(NAMES, rng.randint(2, max(2, min(6, room // 150))))
    facts: list[str] = []
    path: dict[str, list[str]] = {person: [] for person in persons}
    walks = persons + [rng.choice(persons) for _ in range(rng.randint(1, max(2, min(12, room // 100))))]
    for person in walks:
        place = rng.choice([place for place in PLACES if path[person][-1:] != [place]])
        path[person].append(place)
        facts.append(
            rng.choice(
                [
                    f"{person} walked to the {place}.",
                    f"Then {person} went to the {place}.",
                    f"{person} moved to the {place}.",
                ]
            )
        )
    questions = []
    for person in persons:
        if rng.random() < 0.4:
            answer = f"{person} went to the " + ", the ".join(path[person]) + "."
            questions.append(Question(f"List the places {person} went to, in order.", answer))
        else:
            question = rng.choice([f"Where is {person} now?", f"Where did {person} go last?"])
            questions.append(Question(question, f"{person} is in the {path[person][-1]}."))
    return Facts(groups=[FactGroup(facts, ordered=True)], questions=sample_questions(rng, questions, n_questions))
