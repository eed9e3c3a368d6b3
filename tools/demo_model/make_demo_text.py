"""Make the text that the demo reads: the first chapters of a held-out book with facts hidden in it.

    python make_demo_text.py the-sea-wolf.txt ../../fasa_py/demo/sea-wolf.txt

The book is a cleaned one, as prepare.py writes it. Facts stand between sentences, at fixed fractions of the text and
in the phrasings that the model was trained on; their keys belong to the evaluation split.
"""

import argparse
from pathlib import Path

from fasa_py.eval.tasks.haystack import SENTENCE_END

N_CHAPTERS = 2

# (fraction of the text, fact)
FACTS = [
    (0.04, "Item 3: harbor 58."),
    (0.08, "The locker number for copper-rabbit is 300651."),
    (0.13, "Nora walked to the library."),
    (0.17, "Item 6: lantern 94."),
    (0.22, "The locker number for royal-cloud is 911326."),
    (0.28, "Item 1: walnut 27."),
    (0.33, "Victor moved to the bakery."),
    (0.37, "The vault combination is 640731. Remember it. 640731 is the vault combination."),
    (0.42, "The locker number for simple-apple is 450948."),
    (0.47, "Item 8: compass 33."),
    (0.52, "Then Nora went to the station."),
    (0.56, "Item 2: falcon 81."),
    (0.61, "The locker number for bitter-door is 4481213."),
    (0.66, "Item 5: ribbon 16."),
    (0.71, "Then Victor went to the museum."),
    (0.76, "Item 7: meadow 65."),
    (0.80, "The locker number for cloudy-ladder is 72584."),
    (0.85, "Nora moved to the orchard."),
    (0.89, "Item 4: trumpet 40."),
    (0.94, "The locker number for copper-lantern is 862097."),
]


def first_chapters(book: str, n: int) -> str:
    """The text before chapter ``n + 1``."""
    parts = book.split("CHAPTER ")
    if len(parts) < n + 2:
        raise SystemExit(f"the book has only {len(parts) - 1} chapters, {n + 1} are needed")
    return "CHAPTER ".join(parts[: n + 1]).strip() + "\n"


def hide(text: str, facts: list[tuple[float, str]]) -> str:
    """Put each fact after the first sentence that ends at or behind its fraction of the text."""
    ends = [match.start(1) for match in SENTENCE_END.finditer(text)]
    pieces, begin = [], 0
    for fraction, fact in facts:
        end = next(end for end in ends if end >= max(begin, fraction * len(text)))
        pieces.append(f"{text[begin:end]} {fact}")
        begin = end
    return "".join(pieces) + text[begin:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("book", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    excerpt = first_chapters(args.book.read_text(encoding="utf-8"), N_CHAPTERS)
    args.out.write_text(hide(excerpt, FACTS), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
