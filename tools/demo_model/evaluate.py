"""Accuracy of the network on the evaluation split and its perplexity on held-out books.

``exact``: every token of the answer, and the <|end|> that closes it, is the most likely one given the right ones before
it, which is what greedy decoding would give. ``token``: the share of answer tokens for which this holds.
"""

import math
import multiprocessing as mp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import Schedule
from data import load_encoder
from fasa_py.eval.tasks import FAMILIES, Haystack, eval_example
from fasa_py.eval.tasks.vocabulary import BOS_ID
from model import Llama
from pack import unpack

_TAIL = 1024  # last tokens of a row whose loss is reported on its own


@dataclass
class Example:
    family: str
    length: int
    ids: NDArray[np.uint16]
    is_answer: NDArray[np.bool_]


def _make_examples(packed: Path, family: str, length: int, seeds: range) -> list[Example]:
    encode, haystack = load_encoder(packed), Haystack(unpack(packed / "heldout.bz2"))
    examples = []
    for seed in seeds:
        document = eval_example(family, length, seed, haystack, encode)
        ids, is_answer = np.array(document.ids, np.uint16), np.array(document.is_answer, bool)
        examples.append(Example(family, length, ids, is_answer))
    return examples


class Evaluator:
    """Holds the evaluation examples (made at construction) and the held-out books as tokens."""

    def __init__(self, packed: Path, schedule: Schedule) -> None:
        self._step_tokens = schedule.step_tokens
        jobs = [
            (packed, family, length, range(schedule.n_eval)) for family in FAMILIES for length in schedule.eval_lengths
        ]
        with mp.Pool(max(1, schedule.n_workers)) as pool:
            self._examples = [e for made in pool.starmap(_make_examples, jobs, chunksize=1) for e in made]
        encode = load_encoder(packed)
        self._books = [np.array(encode(text), np.uint16) for text in unpack(packed / "heldout.bz2")]

    @torch.no_grad()
    def _forward(
        self, net: Llama, rows: Sequence[NDArray[np.uint16]], length: int
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Per row of at most ``length + 1`` tokens: losses and most likely tokens of its targets."""
        device = net.embedding.device
        n_rows = max(1, self._step_tokens // length)
        for start in range(0, len(rows), n_rows):
            part = rows[start : start + n_rows]
            ids = np.full((n_rows, length + 1), BOS_ID, np.int64)
            for row, tokens in zip(ids, part, strict=False):
                row[: len(tokens)] = tokens
            batch = torch.from_numpy(ids).to(device)
            loss, likeliest = net(batch[:, :-1], batch[:, 1:].reshape(-1))
            losses, best = (t.view(n_rows, length).cpu().numpy() for t in (loss, likeliest))
            for i, tokens in enumerate(part):
                yield losses[i, : len(tokens) - 1], best[i, : len(tokens) - 1]

    def accuracy(self, net: Llama, lengths: Sequence[int], n: int) -> dict[str, dict[str, dict[str, float]]]:
        """{family: {length: {n, exact, token, mean_answer_tokens}}} over the first ``n`` examples of each cell."""
        result: dict[str, dict[str, dict[str, float]]] = {}
        for length in lengths:
            for family in FAMILIES:
                cell = [e for e in self._examples if (e.family, e.length) == (family, length)][:n]
                outputs = self._forward(net, [e.ids for e in cell], length)
                right = [
                    (best == example.ids[1:])[example.is_answer[1:]]
                    for example, (_, best) in zip(cell, outputs, strict=True)
                ]
                result.setdefault(family, {})[str(length)] = {
                    "n": len(cell),
                    "exact": float(np.mean([r.all() for r in right])),
                    "token": round(float(np.mean([r.mean() for r in right])), 4),
                    "mean_answer_tokens": float(np.mean([r.size for r in right])),
                }
        return result

    def perplexity(self, net: Llama, lengths: Sequence[int]) -> dict[str, dict[str, float]]:
        """{length: {loss, ppl, tokens, loss_last1024}} over the held-out books, natural logarithms."""
        result = {}
        for length in lengths:
            rows = [
                np.concatenate([[BOS_ID], book[start : start + length]]).astype(np.uint16)
                for book in self._books
                for start in range(0, len(book) - length, length)
            ]
            losses = np.stack([loss for loss, _ in self._forward(net, rows, length)]).astype(np.float64)
            result[str(length)] = {
                "loss": losses.mean(),
                "ppl": math.exp(losses.mean()),
                "tokens": losses.size,
                "loss_last1024": losses[:, -_TAIL:].mean(),
            }
        return result
