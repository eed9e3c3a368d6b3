"""The embedded demo: a small model trained for long-context retrieval, a text to read, and questions about it.

``fasa_py.Llama()`` loads this model. ``python -m fasa_py.demo`` shows it at work. MODEL_CARD.md says what the model is
and what it is not, and where the text comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).parent


class Question(NamedTuple):
    text: str
    answer: str  # the exact one


INTRODUCTION = "Read the text below and answer the question at the end."

# Asked one after the other about the same text, in phrasings that the model was trained on.
QUESTIONS = (
    Question("What is the vault combination mentioned in the text?", "The vault combination is 640731."),
    Question("What is the locker number for copper-rabbit?", "The locker number for copper-rabbit is 300651."),
    Question("Tell me the locker number for bitter-door.", "The locker number for bitter-door is 4481213."),
    Question("Where is Nora now?", "Nora is in the orchard."),
    Question(
        "List items 1 to 8 in order.",
        "Item 1: walnut 27\nItem 2: falcon 81\nItem 3: harbor 58\nItem 4: trumpet 40\n"
        "Item 5: ribbon 16\nItem 6: lantern 94\nItem 7: meadow 65\nItem 8: compass 33",
    ),
)


def model_path() -> Path:
    """The embedded model, a GGUF file."""
    return _HERE / "fasa-demo-24m-q4_k_m.gguf"


def text() -> str:
    """Two chapters of a novel, about 9,600 tokens, with facts hidden between the sentences."""
    return (_HERE / "sea-wolf.txt").read_text(encoding="utf-8").strip()


def main() -> int:
    """Run the demo; the exit code is 1 if an answer is wrong."""
    from .show import show  # the engine is loaded only when it is needed

    return 0 if show() else 1
