"""Write the fixed evaluation cases: single questions of the eval split over held-out books, 2k to 16k.

    python make_eval.py DATA OUT.jsonl

Reads DATA/heldout and DATA/tokenizer.json. A case: id, task, length, n_tokens and n_answer_tokens, expected answer,
user (the raw user turn), prompt (with the special tokens, without BOS).
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from fasa_py.eval.tasks import Haystack, eval_example
from fasa_py.eval.tasks.document import Encode
from fasa_py.eval.tasks.vocabulary import ASSISTANT, END, USER

FIRST_SEED = 9000
ALL_LENGTHS = [2048, 4096, 8192, 16384]
LENGTHS = {
    "passkey": ALL_LENGTHS,
    "multikey": ALL_LENGTHS * 2,
    "kv": ALL_LENGTHS,
    "fewshot": ALL_LENGTHS,
    "items": ALL_LENGTHS,
    "runsum": ALL_LENGTHS,
    "multivalue": [2048, 4096, 8192],
    "vartrack": [2048, 4096, 8192],
    "where": [2048, 8192],
    "quote": [2048, 4096],
    "count": [2048, 4096],
}


def cases(haystack: Haystack, encode: Encode) -> Iterator[dict[str, str | int]]:
    """All cases in order; each is a function of the haystack, the tokenizer and its place in ``LENGTHS``."""
    for task, lengths in LENGTHS.items():
        for seed, length in enumerate(lengths, FIRST_SEED):
            document = eval_example(task, length, seed, haystack, encode)
            ((user, answer),) = document.turns
            n_answer = sum(document.is_answer)
            yield {
                "id": f"{task}-{length}-{seed}",
                "task": task,
                "length": length,
                "n_tokens": len(document.ids) - n_answer,
                "n_answer_tokens": n_answer,
                "expected": answer,
                "user": user,
                "prompt": USER + user + END + ASSISTANT,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    books = sorted((args.data / "heldout").glob("*.txt"))
    haystack = Haystack([path.read_text(encoding="utf-8") for path in books])
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    with args.out.open("w", encoding="utf-8") as out:
        for case in cases(haystack, lambda text: tokenizer.encode(text, add_special_tokens=False).ids):
            out.write(json.dumps(case, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
