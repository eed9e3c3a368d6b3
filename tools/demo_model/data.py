"""Training data: the packed books as text and tokens, and processes that make rows of tokens from them.

Processes are forked, so that they share the corpus.
"""

import multiprocessing as mp
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from config import Schedule
from fasa_py.eval.tasks import Haystack
from fasa_py.eval.tasks.document import Encode
from fasa_py.eval.tasks.vocabulary import BOS_ID
from mix import train_row
from pack import unpack

_CHUNK_CHARS = 200_000  # encoded at once


@dataclass
class Corpus:
    haystack: Haystack
    ids: NDArray[np.uint16]  # all books, each with BOS in front


@dataclass
class Batch:
    length: int  # tokens of a row
    tokens: NDArray[np.uint16]  # (rows, length + 1)
    weights: NDArray[np.float16]  # (rows, length), of the targets


def load_encoder(packed: Path) -> Encode:
    """The packed tokenizer's text -> ids. Each process loads its own."""
    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _encode_shard(shard: Path) -> NDArray[np.uint16]:
    encode = load_encoder(shard.parent)
    ids: list[int] = []
    for text in unpack(shard):
        ids.append(BOS_ID)
        for start in range(0, len(text), _CHUNK_CHARS):
            ids.extend(encode(text[start : start + _CHUNK_CHARS]))
    return np.array(ids, np.uint16)


def load_corpus(packed: Path, schedule: Schedule) -> Corpus:
    """Read and encode the training books."""
    shards = sorted(packed.glob("t*.bz2"))[: schedule.n_shards]
    with mp.Pool(schedule.n_workers + 2) as pool:
        texts = [text for books in pool.imap(unpack, shards) for text in books]
        ids = np.concatenate(list(pool.imap(_encode_shard, shards)))
    return Corpus(Haystack(texts), ids)


class RowSource:
    """Worker processes that make batches of the current stage's row lengths, ahead of the training."""

    def __init__(self, packed: Path, corpus: Corpus, schedule: Schedule) -> None:
        self.stage = mp.Value("i", 0)  # index of the schedule's stage, set by the trainer
        self._queue: mp.Queue[Batch] = mp.Queue(schedule.n_workers * 2)
        self._workers = [
            mp.Process(target=self._work, args=(packed, corpus, schedule, 1000 + i), daemon=True)
            for i in range(schedule.n_workers)
        ]
        for worker in self._workers:
            worker.start()

    def _work(self, packed: Path, corpus: Corpus, schedule: Schedule, seed: int) -> None:
        os.nice(5)
        encode, rng = load_encoder(packed), Random(seed)
        while True:
            lengths = schedule.stages[self.stage.value].lengths
            length = rng.choices(list(lengths), list(lengths.values()))[0]
            n_rows = schedule.step_tokens // length
            rows = [train_row(rng, corpus.haystack, encode, corpus.ids, length) for _ in range(n_rows)]
            tokens, weights = zip(*rows, strict=True)
            self._queue.put(Batch(length, np.stack(tokens), np.stack(weights)))

    def next(self) -> Batch:
        """The next batch; waits for the workers."""
        return self._queue.get()

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
