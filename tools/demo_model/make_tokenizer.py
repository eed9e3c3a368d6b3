"""Train the 4096-entry byte-level BPE, with Qwen2's pre-split expression, on book text and synthetic tasks.

    python make_tokenizer.py DATA

Reads DATA/train and writes DATA/tokenizer.json.
"""

import argparse
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fasa_py.eval.tasks import Haystack
from fasa_py.eval.tasks.vocabulary import END, END_ID, SPECIALS, VOCAB_SIZE
from mix import train_document

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXCERPT_CHARS = 12_000  # one excerpt for each 120,000 characters of a book
N_TASK_DOCUMENTS, TASK_TOKENS, TASK_BOOKS = 1500, 1000, 40


def _estimate(text: str) -> list[int]:
    """As many ids as the text will have tokens, roughly: there is no tokenizer yet."""
    return [0] * (len(text) // 4)


def sample(texts: list[str]) -> list[str]:
    """Book excerpts and task turns to train the tokenizer on; the same ones at each call."""
    rng = Random(1)
    excerpts = []
    for text in texts:
        for _ in range(max(1, len(text) // (10 * EXCERPT_CHARS))):
            start = rng.randrange(max(1, len(text) - EXCERPT_CHARS))
            excerpts.append(text[start : start + EXCERPT_CHARS])
    haystack = Haystack(texts[:TASK_BOOKS])
    documents = [train_document(rng, haystack, _estimate, TASK_TOKENS) for _ in range(N_TASK_DOCUMENTS)]
    return excerpts + [part for document in documents if document for turn in document.turns for part in turn]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of ``VOCAB_SIZE`` entries, the special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE or tokenizer.token_to_id(END) != END_ID:
        raise SystemExit(f"{tokenizer.get_vocab_size()} entries instead of {VOCAB_SIZE}: too little text to train on")
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in sorted((args.data / "train").glob("*.txt"))]
    tokenizer = train_tokenizer(sample(texts))
    tokenizer.save(str(args.data / "tokenizer.json"))
    held_out = sorted((args.data / "heldout").glob("*.txt"))[0].read_text(encoding="utf-8")[:300_000]
    print(f"{len(held_out.encode()) / len(tokenizer.encode(held_out).ids):.2f} bytes a token on held-out text")


if __name__ == "__main__":
    main()
