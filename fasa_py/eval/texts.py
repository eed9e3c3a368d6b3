"""The book text that ships with the package, and texts of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_DATA = Path(__file__).parent / "data"
BOOKS = ("dracula", "great-expectations", "the-sea-wolf")


class NamedText(NamedTuple):
    name: str
    text: str


def load_texts(files: Sequence[str | Path] = ()) -> list[NamedText]:
    """The files' texts (UTF-8); without files, the package's excerpts of three novels, about 18,000 tokens each."""
    paths = [Path(file) for file in files] or [_DATA / f"{book}.txt" for book in BOOKS]
    return [NamedText(path.stem, path.read_text(encoding="utf-8")) for path in paths]
