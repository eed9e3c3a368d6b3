"""The embedded demo: its files, its text, and a whole run of it in a pipe."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import fasa_py
from fasa_py import demo
from fasa_py.demo import show

ROOT = Path(__file__).parents[2]


def test_the_package_has_its_model_with_a_card_and_a_text() -> None:
    path = demo.model_path()
    assert path.read_bytes()[:4] == b"GGUF"
    card = (path.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{path.stat().st_size:,} bytes" in card
    assert len(demo.text()) > 30_000


def test_every_answer_follows_from_the_text() -> None:
    text = demo.text()
    combination, copper, bitter, nora, items = (question.answer for question in demo.QUESTIONS)
    for sentence in (combination, copper, bitter, *(f"{line}." for line in items.split("\n"))):
        assert text.count(sentence) == 1
    walks = re.findall(r"Nora (?:walked|went|moved) to the (\w+)\.", text)
    assert nora == f"Nora is in the {walks[-1]}."


def test_the_text_is_the_book_with_the_facts() -> None:
    """What make_demo_text.py inserts is all that differs from the book."""
    book = ROOT.parent / "shared" / "models" / "books" / "the-sea-wolf.txt"
    script = ROOT / "tools" / "demo_model" / "make_demo_text.py"
    if not book.exists() or not script.exists():
        pytest.skip("the book is not here")
    facts = re.findall(r'\(0\.\d\d, "(.*)"\)', script.read_text(encoding="utf-8"))
    text = demo.text()
    for fact in facts:
        assert text.count(f" {fact}") == 1
        text = text.replace(f" {fact}", "")
    assert len(facts) == 20
    assert book.read_text(encoding="utf-8").startswith(text)


def test_the_embedded_model_is_the_default() -> None:
    with fasa_py.Llama(n_ctx=64) as llm:
        assert llm.path == demo.model_path()
        assert llm.info.n_ctx_train == 16384


@pytest.mark.slow
def test_demo_answers_everything_right_in_a_pipe() -> None:
    package = Path(fasa_py.__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "fasa_py.demo"], cwd=package.parent, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "\x1b" not in run.stdout, "no colours in a pipe"
    n = len(demo.QUESTIONS)
    assert f"{2 * n} of {2 * n} answers right" in run.stdout
    assert run.stdout.count("✓ right") == 2 * n
    assert run.stdout.count("tokens reused, only") == n - 1
    for question in demo.QUESTIONS:
        assert question.text in run.stdout
        assert run.stdout.count(question.answer[-7:]) == 2, "once for each method"
    full, fasa = re.findall(r"^ *(?:full attention|FASA) .* ([\d.]+) MiB .*(\d) of 8 ", run.stdout, re.MULTILINE)
    assert (full[1], fasa[1]) == ("0", "7")
    assert float(fasa[0]) < 0.4 * float(full[0])


def test_a_wrong_answer_is_reported_and_gives_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = demo.Question("What is the door code?", "The door code is 61010.")
    wrong = demo.Question("What is the door code?", "The door code is 7.")
    text = "The fog was thick. The door code is 61010. The bell rang from the ship, and nobody came. The sea was calm."
    monkeypatch.setattr(show, "text", lambda: text)
    monkeypatch.setattr(show, "QUESTIONS", (right, wrong))
    monkeypatch.setattr(show, "_calibrate", lambda _console, _directory: demo.model_path())
    shown = io.StringIO()
    assert show.show(Console(file=shown, width=100)) is False
    assert shown.getvalue().count("✗ wrong") == shown.getvalue().count("✓ right") == 2
    assert "expected: The door code is 7." in shown.getvalue()
    assert "2 of 4 answers right" in shown.getvalue()
    assert demo.main() == 1
