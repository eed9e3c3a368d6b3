"""A document: facts woven into a haystack, then questions and answers, as a chat of limited length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .facts import FactGroup, Facts, Question
from .families import FACT_FAMILIES, QUOTE
from .haystack import Haystack, Sentence
from .keys import Split
from .vocabulary import ASSISTANT_ID, BOS_ID, END_ID, USER_ID

Encode = Callable[[str], Sequence[int]]  # text -> token ids, without special tokens

INTRODUCTIONS = [
    "",
    "",
    "Read the text below and answer the question at the end.",
    "Here is a long text with some facts in it.",
    "Some important facts are hidden in the following text. Remember them.",
    "You are a careful reader.",
]
_TOKENS_PER_TURN = 4  # markers of a user and an assistant turn
_TOKENS_PER_QUOTE = 130  # room for a quoted sentence and its successor
_CHARS_PER_TOKEN = 4.6  # more than the tokenizer's 3.6, so that a stretch is never too short
_MIN_HAYSTACK = 24  # tokens; with less, a document has no book text


@dataclass
class Document:
    turns: list[tuple[str, str]]  # (user, assistant)
    tasks: list[str]  # family of each turn
    ids: list[int]  # the whole chat, BOS first
    is_answer: list[int]  # 1 for tokens of answers and the <|end|> that closes them; as long as ids


@dataclass
class _Asked:
    """A question and the family it belongs to."""

    family: str
    question: Question


def make_document(
    rng: Random,
    haystack: Haystack,
    encode: Encode,
    limit: int,
    split: Split,
    families: Sequence[str],
    n_questions: int | None = None,
    fill: float = 1.0,
) -> Document | None:
    """A chat of about ``fill * limit`` tokens, at most ``limit``; None when this draw came out too long.

    ``n_questions`` of each family are asked; None draws a number.
    """
    room = int(limit * fill) - 8
    facts, asked, n_quotes = _draw_facts(rng, room // len(families), split, families, n_questions)
    introduction = rng.choice(INTRODUCTIONS)
    fixed = [introduction] + [" ".join(group.facts) for group in facts.groups] + facts.blocks
    fixed += [a.question.text + a.question.answer for a in asked]
    budget = room - len(encode("\n".join(fixed)))
    budget -= _TOKENS_PER_TURN * (len(asked) + n_quotes) + _TOKENS_PER_QUOTE * n_quotes
    if budget < _MIN_HAYSTACK and (n_quotes or budget < -8):
        return None
    sentences = _draw_haystack(rng, haystack, encode, budget) if budget >= _MIN_HAYSTACK else []
    pieces, adjacent = _weave(rng, sentences, facts)
    if n_quotes:
        quotes = _ask_quotes(rng, sentences, adjacent, n_quotes)
        if not quotes and len(families) == 1:
            return None
        asked += quotes
    if not asked:
        return None
    rng.shuffle(asked)
    context = "".join(text + separator for text, separator in pieces).strip()
    turns = [(a.question.text, a.question.answer) for a in asked]
    turns[0] = ("\n\n".join(([introduction] if introduction else []) + [context, turns[0][0]]), turns[0][1])
    return encode_chat(turns, [a.family for a in asked], encode, limit)


def encode_chat(turns: list[tuple[str, str]], tasks: list[str], encode: Encode, limit: int) -> Document | None:
    """Token ids of as many turns as fit into ``limit``; None when not even the first does."""
    ids, is_answer = [BOS_ID], [0]
    n_turns = 0
    for user, assistant in turns:
        asked = [USER_ID, *encode(user), END_ID, ASSISTANT_ID]
        answered = [*encode(assistant), END_ID]
        if len(ids) + len(asked) + len(answered) > limit:
            break
        ids += asked + answered
        is_answer += [0] * len(asked) + [1] * len(answered)
        n_turns += 1
    return Document(turns[:n_turns], tasks[:n_turns], ids, is_answer) if n_turns else None


def _draw_facts(
    rng: Random, room: int, split: Split, families: Sequence[str], n_questions: int | None
) -> tuple[Facts, list[_Asked], int]:
    """Facts of all families together, the questions about them, and how many quotes to ask for."""
    facts, asked, n_quotes = Facts(), [], 0
    for family in families:
        if family == QUOTE:
            n_quotes = n_questions or rng.choice([1, 1, 2, 3])
            continue
        drawn = FACT_FAMILIES[family](rng, room, split, n_questions)
        facts.groups += drawn.groups
        facts.blocks += drawn.blocks
        asked += [_Asked(family, question) for question in drawn.questions]
    return facts, asked, n_quotes


def _join(sentences: Sequence[Sentence]) -> str:
    return "".join(sentence.text + sentence.separator for sentence in sentences)


def _draw_haystack(rng: Random, haystack: Haystack, encode: Encode, budget: int) -> list[Sentence]:
    """Sentences of at most ``budget`` tokens (at least one sentence)."""
    sentences = haystack.stretch(rng, int(budget * _CHARS_PER_TOKEN))
    n_tokens = len(encode(_join(sentences)))
    while n_tokens > budget and len(sentences) > 1:
        keep = max(1, min(len(sentences) - 1, int(len(sentences) * budget / n_tokens)))
        sentences = sentences[:keep]
        n_tokens = len(encode(_join(sentences)))
    return sentences


def _places(rng: Random, n_places: int, groups: list[FactGroup]) -> dict[int, list[tuple[str, bool]]]:
    """For each place between sentences the facts that go there, each with whether its order matters."""
    placed: dict[int, list[tuple[str, bool]]] = {}
    for group in groups:
        places = [rng.randrange(n_places) for _ in group.facts]
        if group.ordered:
            places.sort()
        for place, fact in zip(places, group.facts, strict=True):
            placed.setdefault(place, []).append((fact, group.ordered))
    return placed


def _mix(rng: Random, placed: list[tuple[str, bool]]) -> list[str]:
    """The facts of one place: unordered ones shuffled, ordered ones kept in order, before or after them."""
    if len(placed) <= 1:
        return [fact for fact, _ in placed]
    unordered = [fact for fact, ordered in placed if not ordered]
    rng.shuffle(unordered)
    in_order = [fact for fact, ordered in placed if ordered]
    return unordered + in_order if rng.random() < 0.5 else in_order + unordered


def _weave(rng: Random, sentences: list[Sentence], facts: Facts) -> tuple[list[tuple[str, str]], list[int]]:
    """Put facts and blocks between sentences.

    Returns the pieces of the context, (text, separator), and the indices of sentences that the next sentence still
    follows directly.
    """
    n_places = len(sentences) + 1
    placed = _places(rng, n_places, facts.groups)
    blocks: dict[int, list[str]] = {}
    for block in facts.blocks:
        blocks.setdefault(rng.randrange(n_places), []).append(block)
    pieces: list[tuple[str, str]] = []
    adjacent = []
    for place in range(n_places):
        mixed = _mix(rng, placed.get(place, []))
        separator = pieces[-1][1] if pieces else "\n\n"
        pieces += [(fact, separator) for fact in mixed]
        for block in blocks.get(place, []):
            if pieces:
                pieces[-1] = (pieces[-1][0], "\n\n")
            pieces.append((block, "\n\n"))
        if place < len(sentences):
            if place and not mixed and place not in blocks:
                adjacent.append(place - 1)
            pieces.append(sentences[place])
    return pieces, adjacent


def _ask_quotes(rng: Random, sentences: list[Sentence], adjacent: list[int], n: int) -> list[_Asked]:
    """Up to ``n`` questions for the sentence that follows another one, which must stand in the context only once."""
    candidates = [
        i
        for i in adjacent
        if sentences[i].separator == " "
        and 40 <= len(sentences[i].text) <= 220
        and 30 <= len(sentences[i + 1].text) <= 260
    ]
    texts = [sentence.text for sentence in sentences]
    rng.shuffle(candidates)
    asked = []
    for i in candidates[:n]:
        cue = texts[i]
        if texts.count(cue) > 1:
            continue
        question = rng.choice(
            [
                f"Which sentence comes right after this one in the text? {cue}",
                f"Quote the sentence that follows this one: {cue}",
            ]
        )
        asked.append(_Asked(QUOTE, Question(question, texts[i + 1])))
    return asked
