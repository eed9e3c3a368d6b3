"""Clean the public-domain books of a git mirror of mlschmitt/classic-books-markdown into plain text.

    python prepare.py DATA MIRROR

Writes DATA/train/NNN.txt, DATA/heldout/NN-<title>.txt and DATA/books.json. Training and held-out texts are separated
by whole book (``HELD_OUT``), so that no held-out book is ever seen in training.
"""

import argparse
import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = [
    "Wilkie Collins/The Moonstone.md",
    "Jane Austen/Northanger Abbey.md",
    "Agatha Christie/The Secret Adversary.md",
    "Jack London/The Sea Wolf.md",
    "Edith Wharton/The Age of Innocence.md",
    "Charles Dickens/Great Expectations.md",
    "Arthur Conan Doyle/The Lost World.md",
    "Robert Louis Stevenson/Kidnapped.md",
    "Bram Stoker/Dracula.md",
    "Henry David Thoreau/Walden.md",
    "Plato/The Republic.md",
    "H.G. Wells/Men Like Gods.md",
]
# Typographic characters to ASCII, so that a small vocabulary suffices.
ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", "--"),
        "\u2026": "...",
        **dict.fromkeys("\u00a0\u2009\u200a\u2002\u2003\u202f\t", " "),
        **dict.fromkeys("\ufeff\u200b\u00ad", ""),
        **dict.fromkeys("\r\u2028\x0c", "\n"),
    }
)
ENTITIES = {"&nbsp;": " ", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
# The commonest English words; a text with few of them is not English prose.
COMMON = set(re.findall(r"\w+", "the of and to in a that he was it his is with as for had i but not on at be by you"))
MIN_COMMON, MAX_NON_ASCII, MIN_CHARS = 0.22, 0.01, 8000


def _strip_frame(text: str) -> str:
    """Drop what stands before and after the book: licence, title block."""
    if match := re.search(r"\*\*\* ?START OF.*?\*\*\*", text):
        text = text[match.end() :]
    if match := re.search(r"\*\*\* ?END OF|End of (the )?Project Gutenberg", text):
        text = text[: match.start()]
    if match := re.match(r"\s*# Title:.*?\n-{3,}\s*\n", text[:1500], re.DOTALL):
        text = text[match.end() :]
    return text


def _strip_markup(text: str) -> str:
    """Drop HTML, images and footnote marks; keep the text of links."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"</?[A-Za-z][^<>\n]{0,200}>", "", text)
    text = re.sub(r"!\[[^\]\n]*\]\([^)\n]*\)", "", text)
    text = re.sub(r"\[([^\]\n]*)\]\([^)\n]*\)", r"\1", text)
    text = re.sub(r"\[\^?\d+\]:?", "", text)
    for entity, character in ENTITIES.items():
        text = text.replace(entity, character)
    return text


def _clean_line(line: str) -> str:
    line = re.sub(r" {2,}", " ", line.strip())
    if re.fullmatch(r"[-=_* ]{3,}", line):
        return ""
    line = re.sub(r"^>\s?", "", re.sub(r"^#{1,6}\s*", "", line))
    return "" if "gutenberg" in line.lower() else line


def _strip_emphasis(text: str) -> str:
    text = re.sub(r"\\([*_#\[\]().'\"&-])", r"\1", text)
    text = re.sub(r"[*_]{1,3}(?=\S)([^*_\n]{1,400}?)[*_]{1,3}", r"\1", text)
    return re.sub(r"[*_\\]", "", text)


def _unwrap(paragraph: str) -> str:
    """Join the lines of hard-wrapped prose; keep those of verse and lists."""
    lines = [line for line in paragraph.split("\n") if line]
    wrapped = len(lines) > 2 and sum(map(len, lines[:-1])) / (len(lines) - 1) > 55
    return (" " if wrapped else "\n").join(lines).strip()


def clean(markdown: str) -> str:
    """Plain text of a book: paragraphs separated by an empty line."""
    text = unicodedata.normalize("NFC", markdown.replace("\r\n", "\n")).translate(ASCII)
    text = _strip_markup(_strip_frame(text))
    text = _strip_emphasis("\n".join(_clean_line(line) for line in text.split("\n")))
    paragraphs = [_unwrap(paragraph) for paragraph in re.split(r"\n{2,}", text)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def is_usable(text: str) -> bool:
    """Whether a text is long enough, English and sound."""
    words = text.lower().split()
    common = sum(word in COMMON for word in words) / max(1, len(words))
    non_ascii = sum(ord(c) > 127 for c in text) / max(1, len(text))
    damaged = "\ufffd" in text[:200000]
    return common > MIN_COMMON and non_ascii < MAX_NON_ASCII and len(text) > MIN_CHARS and not damaged


def _git(mirror: Path, *args: str) -> bytes:
    command = ["git", "-C", str(mirror), "-c", "core.quotepath=off", *args]
    return subprocess.run(command, capture_output=True, check=True).stdout


def books(mirror: Path) -> Iterator[tuple[str, str]]:
    """(path, markdown) of each book at the mirror's HEAD, in git's order."""
    paths = _git(mirror, "ls-tree", "-r", "-z", "--name-only", "HEAD").decode().split("\0")
    for path in paths:
        if path.endswith(".md") and path != "README.md":
            yield path, _git(mirror, "cat-file", "blob", f"HEAD:{path}").decode("utf-8", "replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("mirror", type=Path, help="a git clone, bare or not")
    args = parser.parse_args()
    for part in ("train", "heldout"):
        (args.data / part).mkdir(parents=True, exist_ok=True)
    written: list[dict[str, str | int]] = []
    n_train = 0
    for path, markdown in books(args.mirror):
        text = clean(markdown)
        if path in HELD_OUT:
            title = re.sub(r"[^a-z0-9]+", "-", path.removesuffix(".md").split("/")[1].lower())
            name = f"heldout/{HELD_OUT.index(path):02d}-{title}.txt"
        elif is_usable(text):
            name = f"train/{n_train:03d}.txt"
            n_train += 1
        else:
            print("not used:", path)
            continue
        (args.data / name).write_text(text, encoding="utf-8", newline="\n")
        written.append({"file": name, "source": path, "bytes": len(text.encode())})
    (args.data / "books.json").write_text(json.dumps(written, indent=0, ensure_ascii=False), encoding="utf-8")
    print(f"{n_train} books for training, {len(written) - n_train} held out")


if __name__ == "__main__":
    main()
