"""Published cases, as llama.cpp handles them: vocabularies and chat templates of ``shared`` beside the repository."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fasa_py.chat import ChatTemplate
from fasa_py.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "conformance"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="no shared/conformance beside the repository")

VOCABULARIES = sorted((SHARED / "vocab").glob("*.gguf"))
TEMPLATES: dict[str, Any] = (
    json.loads((SHARED / "chat" / "templates.json").read_text(encoding="utf-8")) if SHARED.exists() else {"cases": []}
)


@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem)
def test_vocabulary(path: Path) -> None:
    # Read as bytes: cases hold carriage returns, which must stay.
    cases = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(token) for token in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert len(cases) == len(expected) + 1
    assert cases.pop() == ""
    tokenizer = Tokenizer(path)
    assert [tokenizer.encode(text) for text in cases] == expected
    assert [tokenizer.decode(ids) for ids in expected] == cases
    for text, ids in zip(cases, expected, strict=True):
        stream = tokenizer.stream()
        streamed = "".join(map(stream.push, ids)) + stream.flush()
        assert streamed == (" " + text if tokenizer.model_name == "llama" and text else text)


@pytest.mark.parametrize("case", TEMPLATES["cases"], ids=lambda case: case["name"])
def test_chat_template(case: dict[str, Any]) -> None:
    assert case["error"] is None
    template = ChatTemplate(case["template"], TEMPLATES["bos_token"], TEMPLATES["eos_token"])
    rendered = template.render(TEMPLATES["messages"], TEMPLATES["add_generation_prompt"], now=datetime(2026, 11, 22))
    assert rendered == case["expected"]


def test_there_are_cases() -> None:
    assert len(VOCABULARIES) >= 3
    assert len(TEMPLATES["cases"]) >= 10
