"""Families whose answer stands in the text: pass keys, values of one key among many, key/value lists."""

from random import Random

from .facts import FactGroup, Facts, Question, question_count, sample_questions
from .keys import Split, adjective_noun, crowded_adjective_noun, digits, distinct_keys, distinct_values, hex_key
from .words import NOUNS


def passkey(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """One number hidden in the text."""
    what = rng.choice(["pass key", "pass key", "secret code", "access number", "vault combination", "door code"])
    value = digits(rng)
    fact = rng.choice(
        [
            "The {w} is {v}. Remember it. {v} is the {w}.",
            "The {w} is {v}.",
            "Remember this: the {w} is {v}.",
            "Do not forget that the {w} is {v}.",
        ]
    )
    question, answer = rng.choice(
        [
            ("What is the {w}?", "The {w} is {v}."),
            ("What is the {w} mentioned in the text?", "The {w} is {v}."),
            ("Find the {w} in the text above.", "The {w} is {v}."),
            ("What is the {w}? Answer with the number only.", "{v}"),
        ]
    )
    return Facts(
        groups=[FactGroup([fact.format(w=what, v=value)], ordered=False)],
        questions=[Question(question.format(w=what), answer.format(w=what, v=value))],
    )


def multikey(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Many keys with a value each; some are asked for."""
    n = rng.randint(4, max(5, min(40, room // 60)))
    keys = distinct_keys(split, crowded_adjective_noun(rng, n), n)
    what = rng.choice(["special magic number", "special magic number", "locker number", "badge number", "access code"])
    use_words = rng.random() < 0.15
    values = [rng.choice(NOUNS) if use_words else digits(rng) for _ in keys]
    if use_words:
        what = "special magic word"
    fact = rng.choice(
        [
            "The {w} for {k} is {v}.",
            "One of the facts is that the {w} for {k} is {v}.",
            "Note: the {w} for {k} is {v}.",
        ]
    )
    questions = []
    for i in rng.sample(range(len(keys)), question_count(rng, n_questions, len(keys))):
        question, answer = rng.choice(
            [
                ("What is the {w} for {k}?", "The {w} for {k} is {v}."),
                ("What is the {w} for {k} mentioned in the text?", "The {w} for {k} is {v}."),
                ("Tell me the {w} for {k}.", "The {w} for {k} is {v}."),
                ("What is the {w} for {k}? Answer with the value only.", "{v}"),
            ]
        )
        questions.append(Question(question.format(w=what, k=keys[i]), answer.format(w=what, k=keys[i], v=values[i])))
    facts = [fact.format(w=what, k=key, v=value) for key, value in zip(keys, values, strict=True)]
    return Facts(groups=[FactGroup(facts, ordered=False)], questions=questions)


def multivalue(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """Keys with several values each; all the values of one are asked for."""
    n = rng.randint(1, max(1, min(4, room // 400)))
    keys = distinct_keys(split, adjective_noun(rng), n)
    what = rng.choice(["special magic number", "lucky number", "ticket number"])
    groups, questions = [], []
    for key in keys:
        values = distinct_values(lambda: digits(rng), rng.randint(2, 5))
        groups.append(FactGroup([f"One of the {what}s for {key} is {value}." for value in values], ordered=True))
        question = rng.choice(
            [f"What are all the {what}s for {key}?", f"List every {what} for {key}, in the order of the text."]
        )
        questions.append(Question(question, f"The {what}s for {key} are " + ", ".join(values) + "."))
    return Facts(groups=groups, questions=sample_questions(rng, questions, n_questions))


def kv(rng: Random, room: int, split: Split, n_questions: int | None) -> Facts:
    """A JSON list of keys and values in one piece; some keys are looked up."""
    n = rng.randint(8, max(9, min(260, room // rng.choice([40, 60, 120]))))
    kind = rng.random()
    keys = distinct_keys(split, (lambda: hex_key(rng)) if kind < 0.6 else adjective_noun(rng), n)
    use_words = kind < 0.3 or kind >= 0.8
    values = [rng.choice(NOUNS) if use_words else hex_key(rng) for _ in keys]
    block = "{\n" + ",\n".join(f'"{k}": "{v}"' for k, v in zip(keys, values, strict=True)) + "\n}"
    questions = []
    for i in rng.sample(range(len(keys)), question_count(rng, n_questions, len(keys))):
        question = rng.choice(
            [
                'What is the value of the key "{k}"?',
                'Look up "{k}" in the list.',
                'Which value belongs to "{k}"?',
            ]
        )
        questions.append(Question(question.format(k=keys[i]), f'"{keys[i]}": "{values[i]}"'))
    return Facts(blocks=[block], questions=questions)
