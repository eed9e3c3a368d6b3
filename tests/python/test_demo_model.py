"""The task generator: the same documents for ever, and answers that follow from the text."""

import json
import sys
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fasa_py.eval import tasks
from fasa_py.eval.tasks.document import Encode
from fasa_py.eval.tasks.keys import is_eval_key
from fasa_py.eval.tasks.words import ADJECTIVES, NAMES, NOUNS, PLACES

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "models"
TOOLS = ROOT / "tools" / "demo_model"

if not TOOLS.is_dir():
    pytest.skip("the recipe comes with the source repository only", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

from make_eval import FIRST_SEED, LENGTHS, cases  # noqa: E402
from mix import train_row  # noqa: E402

sys.path.remove(str(TOOLS))

# CRC-32 of eval_example(family, 1500, 0..3) over prose() and estimate().
DIGESTS = {
    "passkey": 0x8F1BD0ED,
    "multikey": 0xE423BDD7,
    "multivalue": 0x34141DA0,
    "vartrack": 0xD4B6D5CD,
    "kv": 0x6CD49F53,
    "quote": 0xED16D82E,
    "fewshot": 0xF5DF5BAB,
    "items": 0x69CA99C3,
    "runsum": 0x10AD2849,
    "count": 0x50922654,
    "where": 0x64308A73,
}


def prose(n_sentences: int = 4000) -> str:
    """English-looking sentences, always the same ones."""
    rng = Random("prose")
    sentences = []
    for _ in range(n_sentences):
        adjective, noun, name, place = (rng.choice(words) for words in (ADJECTIVES, NOUNS, NAMES, PLACES))
        end = "\n\n" if rng.random() < 0.1 else " "
        sentences.append(
            f"{name} saw the {adjective} {noun} near a {place}, and thought of {rng.randint(2, 999)}.{end}"
        )
    return "".join(sentences)


def estimate(text: str) -> list[int]:
    """Stands in for a tokenizer: a token every four characters."""
    return [len(text) % 4000] * (len(text) // 4)


@pytest.fixture(scope="module")
def haystack() -> tasks.Haystack:
    return tasks.Haystack([prose()])


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_examples_never_change(family: str, haystack: tasks.Haystack) -> None:
    documents = [tasks.eval_example(family, 1500, seed, haystack, estimate) for seed in range(4)]
    content = repr([(d.turns, d.ids, d.is_answer) for d in documents])
    assert zlib.crc32(content.encode()) == DIGESTS[family]


@pytest.mark.parametrize("family", tasks.FAMILIES)
@pytest.mark.parametrize("limit", [700, 2048, 6000])
def test_document_fits_and_marks_its_answer(family: str, limit: int, haystack: tasks.Haystack) -> None:
    document = tasks.eval_example(family, limit, 5, haystack, estimate)
    ((_, answer),) = document.turns
    assert len(document.ids) == len(document.is_answer) <= limit
    assert sum(document.is_answer) == len(estimate(answer)) + 1  # and the end marker
    assert document.tasks == [family]


@pytest.mark.parametrize("seed", range(8))
def test_facts_asked_for_are_in_the_text(seed: int, haystack: tasks.Haystack) -> None:
    def ask(family: str) -> tuple[str, str, str]:
        ((user, answer),) = tasks.eval_example(family, 3000, seed, haystack, estimate).turns
        context, question = user.rsplit("\n\n", 1)
        return context, question, answer

    context, _, answer = ask("passkey")
    value = answer.removesuffix(".").split()[-1]
    assert value.isdigit() and value in context

    context, question, answer = ask("multikey")
    key = next(word.strip("?.") for word in question.split() if "-" in word)
    assert is_eval_key(key)
    assert f"for {key} is {answer.removesuffix('.').split()[-1]}." in context

    context, _, answer = ask("kv")
    assert f"{answer}" in context

    context, _, answer = ask("items")
    assert all(f"{line}." in context for line in answer.split("\n"))

    context, _, answer = ask("runsum")
    total = 0
    for line in answer.split("\n"):
        entry, rest = line.split(",")
        assert f"{entry}." in context
        total = (total + int(entry.split()[-1])) % 100
        assert rest == f" total {total}"

    context, question, answer = ask("quote")
    cue = question.split(": ", 1)[-1].removeprefix("Which sentence comes right after this one in the text? ")
    assert f"{cue} {answer}" in context


def test_training_and_evaluation_keys_are_disjoint(haystack: tasks.Haystack) -> None:
    rng = Random(3)
    documents = [
        tasks.make_document(rng, haystack, estimate, 2000, split, ["multikey"]) for split in ("train", "eval") * 10
    ]
    keys: dict[bool, set[str]] = {True: set(), False: set()}
    for i, document in enumerate(d for d in documents if d):
        words = (word.strip("?.,") for turn in document.turns for word in turn[1].split())
        keys[i % 2 == 1] |= {word for word in words if "-" in word}
    assert keys[True] and keys[False]
    assert all(map(is_eval_key, keys[True])) and not any(map(is_eval_key, keys[False]))


def test_training_rows_weigh_answers(haystack: tasks.Haystack) -> None:
    corpus = np.arange(20000).astype(np.uint16)
    rng = Random(1)
    rows = [train_row(rng, haystack, estimate, corpus, 1024) for _ in range(40)]
    assert all(tokens.shape == (1025,) and weights.shape == (1024,) for tokens, weights in rows)
    heaviest = [float(weights.max()) for _, weights in rows]
    assert min(heaviest) == 1.0, "some rows are plain text"
    assert 2.0 <= max(heaviest) <= 24.0, "answers weigh 2 to 24 times a token of text"


def fixed_cases() -> list[dict[str, str]]:
    path = SHARED / "eval.jsonl"
    if not path.exists():
        pytest.skip("the fixed evaluation cases are not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encoder() -> Encode:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(SHARED / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def test_questions_equal_the_fixed_evaluation_cases() -> None:
    """Questions, answers and facts are drawn before the book text, so they come out the same over any books."""
    fixed = [case for case in fixed_cases() if case["task"] != "quote"]
    books = [path.read_text(encoding="utf-8") for path in sorted((SHARED / "books").glob("*.txt"))]
    made = {case["id"]: case for case in cases(tasks.Haystack(books), encoder())}
    assert fixed
    for case in fixed:
        again = made[case["id"]]
        assert again["expected"] == case["expected"]
        assert str(again["user"]).rsplit("\n\n", 1)[1] == case["user"].rsplit("\n\n", 1)[1]


def test_cases_equal_the_fixed_ones_over_the_held_out_books() -> None:
    fixed = fixed_cases()
    books = sorted((TOOLS / "data" / "heldout").glob("*.txt"))
    if len(books) != 12:
        pytest.skip("the held-out books are not in tools/demo_model/data (prepare.py makes them)")
    made = {
        case["id"]: case for case in cases(tasks.Haystack([b.read_text(encoding="utf-8") for b in books]), encoder())
    }
    for case in fixed:
        assert made[case["id"]] == case


def test_every_case_has_its_own_seed() -> None:
    ids = [f"{task}-{n}-{seed}" for task, lengths in LENGTHS.items() for seed, n in enumerate(lengths, FIRST_SEED)]
    assert len(ids) == len(set(ids)) == sum(map(len, LENGTHS.values()))
