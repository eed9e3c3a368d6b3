"""Whether a GPU chooses and says what the CPU does, and how often its cache of rows is hit, on the text of real books.

    python bench/gpu_fidelity.py [--lengths 4096 8192 16384] [--parts selections ...] [--json build/gpu_fidelity.json]

The packaged demo model reads the books that ``fasa eval`` has, which were held out of its training. Of every length the
last tokens are decoded one by one, and those before them are the prompt. Every step is sparse, at the defaults of
:class:`fasa_py.Method` but for --dense-layers. Parts:

- ``selections``: the positions that the GPU selects along --tokens tokens of a book, beside the CPU's. Each device
  processed the prompt by itself ("own"), or the GPU was given the CPU's keys and values ("given").
- ``placements``: --run tokens that FASA-C (``kv="device"``) writes, put through FASA-M (``kv="split"``), without and
  with a cache of rows on the device: whether it writes the same ones, and how far logits are apart.
- ``rows``: how many rows of host memory --run tokens of a book find in that cache, by its size; bytes over the bus.
- ``k_dom``: selections of dominant keys with 8 and 4 bits along --tokens tokens, beside exact ones, all on the GPU.

A row counts as not forced when it is none of the n_sink first and n_recent last positions. Which rows were hit is not
counted, so their share is a lower bound: all forced rows that can be in the cache, all but the newest, are taken to
have been hit. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import REPOSITORY

from fasa_py.eval.inside import Tap
from fasa_py.eval.overlap import Choices, shares
from fasa_py.eval.subject import Subject
from fasa_py.eval.texts import load_texts
from fasa_py.method import Method
from fasa_py.model import Context, ContextSettings
from fasa_py.progress import progress_bar

Row = dict[str, Any]
OVERLAP, OVERLAP_OF_CODES, HITS = 0.99, {"int8": 0.98, "q4": 0.90}, 0.65  # the bars
CACHE_SIZES = (0, 1, 2, 4, 8)  # rows of a layer and KV head, in n_fac
DEFAULT_SIZE = 4


class Fidelity:
    """The model on both devices, and what is read: prompts with the tokens that follow them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.subject = Subject(arguments.model, device=arguments.device)
        self.info = self.subject.info
        self.method = Method("fasa", n_fac=arguments.n_fac, dense_layers=arguments.dense_layers, dense_below=0)
        texts = load_texts()[: arguments.books]
        ids = {text.name: self.subject.begin(text.text) for text in texts}
        for (name, book), length in product(ids.items(), arguments.lengths):
            if len(book) < length:
                raise SystemExit(f"{length} tokens were asked for: {name} has {len(book)}")
        self.cases = [(length, name, book[:length]) for length, (name, book) in product(arguments.lengths, ids.items())]
        with self.context() as context:
            self.method = context.method  # every setting resolved

    @contextmanager
    def context(
        self, subject: Subject | None = None, kv: str = "device", k_dom: str = "f16", rows: int = 0
    ) -> Iterator[Context]:
        settings = ContextSettings(
            max(self.arguments.lengths), method=self.method, kv=kv, k_dom=k_dom, kv_cache_rows=rows
        )
        with closing(Context((subject or self.subject).model, settings)) as context:
            yield context

    def choices(self, context: Context, tokens: Sequence[int]) -> Choices:
        """What the context's next steps select, along these tokens."""
        choices = Choices()
        with closing(Tap(context, self.info, len(tokens))) as tap:
            for token in tokens:
                context.decode(0, [token])
            choices.add(tap, self.info)
        return choices

    def compared(self, ours: Choices, theirs: Choices) -> Row:
        """Mean and least share of a list's positions that the other list has too: of all, and of those not forced."""
        whole = np.array(shares(ours, theirs, 0, 0))
        free = np.array(shares(ours, theirs, self.method.n_sink, self.method.n_recent))
        n_layer = self.info.n_layer - self.method.dense_layers
        by_layer = free.reshape(-1, n_layer, self.info.n_head_kv).mean(axis=(0, 2))
        return {
            "n_list": len(whole), "overlap": float(whole.mean()), "least": float(whole.min()),
            "overlap_free": float(free.mean()), "least_free": float(free.min()), "by_layer_free": by_layer.tolist(),
        }  # fmt: skip

    # -- parts ---------------------------------------------------------------------------------------------------------

    def selections(self) -> Iterator[Row]:
        n = self.arguments.tokens
        cpu = Subject(self.arguments.model, device="cpu")
        with self.context(cpu) as theirs, self.context() as ours, tempfile.TemporaryDirectory() as folder:
            for length, book, ids in self.cases:
                refill(theirs, ids[:-n])
                theirs.save(0, Path(folder) / "state")
                expected = self.choices(theirs, ids[-n:])
                for prompt in ("own", "given"):
                    if prompt == "own":
                        refill(ours, ids[:-n])
                    else:
                        ours.load(0, Path(folder) / "state")
                    found = self.compared(self.choices(ours, ids[-n:]), expected)
                    ok = found["overlap"] >= OVERLAP
                    yield {"part": "selections", "length": length, "book": book, "prompt": prompt, **found, "ok": ok}

    def placements(self) -> Iterator[Row]:
        n = self.arguments.run
        for length, book, ids in self.cases:
            with self.context() as context:
                refill(context, ids[:-n])
                tokens, expected = written(context, n)
            for size in (0, DEFAULT_SIZE):
                with self.context(kv="split", rows=size * self.arguments.n_fac) as context:
                    refill(context, ids[:-n])
                    found = [context.logits.copy(), *along(context, tokens[:-1])]
                best = [int(logits.argmax()) for logits in found]
                others = [i for i in range(n) if best[i] != tokens[i]]
                yield {
                    "part": "placements", "length": length, "book": book, "size": size, "n": n,
                    "n_other": len(others), "first_other": others[0] if others else None,
                    "lead": max((float(expected[i].max() - expected[i][best[i]]) for i in others), default=0.0),
                    "difference": max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)),
                    "largest": max(float(np.abs(logits).max()) for logits in expected), "ok": not others,
                }  # fmt: skip

    def rows(self) -> Iterator[Row]:
        n, method = self.arguments.run, self.method
        n_forced = method.n_sink + method.n_recent
        for size in CACHE_SIZES:
            with self.context(kv="split", rows=size * self.arguments.n_fac) as context:
                for length, book, ids in self.cases:
                    refill(context, ids[:-n])
                    before = context.stats()
                    for token in ids[-n:]:
                        context.decode(0, [token])
                    after = context.stats()
                    hit, missed = after.rows_hit - before.rows_hit, after.rows_missed - before.rows_missed
                    n_list = (after.layers_sparse - before.layers_sparse) * self.info.n_head_kv
                    if n_list == 0 or hit + missed != n_list * method.n_fac:
                        raise SystemExit(
                            f"rows: {hit} hit and {missed} missed are not {n_list} lists of {method.n_fac} "
                            "(a device that shares the host's memory counts none)"
                        )
                    free = max(0, hit - n_list * (n_forced - 1)) / (n_list * (method.n_fac - n_forced))
                    yield {
                        "part": "rows", "length": length, "book": book, "size": size, "rows_hit": hit,
                        "rows_missed": missed, "n_list": n_list, "hit": hit / (hit + missed), "hit_free": free,
                        "bytes_per_token": (after.pcie_bytes - before.pcie_bytes) / n,
                        "ok": size != DEFAULT_SIZE or free >= HITS,
                    }  # fmt: skip

    def k_dom(self) -> Iterator[Row]:
        n = self.arguments.tokens
        found = {}
        for k_dom in ("f16", *OVERLAP_OF_CODES):
            with self.context(k_dom=k_dom) as context:
                for i, (length, book, ids) in enumerate(self.cases):
                    refill(context, ids[:-n])
                    choices = self.choices(context, ids[-n:])
                    if k_dom == "f16":
                        found[i] = choices
                        continue
                    values = self.compared(choices, found[i])
                    ok = values["overlap"] >= OVERLAP_OF_CODES[k_dom]
                    yield {"part": "k_dom", "length": length, "book": book, "k_dom": k_dom, **values, "ok": ok}


def refill(context: Context, prompt: Sequence[int]) -> None:
    context.truncate(0, 0)
    context.decode(0, prompt)


def along(context: Context, tokens: Iterable[int]) -> Iterator[np.ndarray]:
    """Logits float32 (n_vocab,) after each of the tokens."""
    for token in tokens:
        context.decode(0, [token])
        yield context.logits.copy()


def written(context: Context, n: int) -> tuple[list[int], list[np.ndarray]]:
    """The n tokens that the context goes on with, the likeliest each, and the logits that they come from."""
    logits = [context.logits.copy()]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < n:
        logits += along(context, tokens[-1:])
        tokens.append(int(logits[-1].argmax()))
    return tokens, logits


# -- the report --------------------------------------------------------------------------------------------------------


def of_books(rows: list[Row], part: str, *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows of a part, those of all books together, by the values of keys in the order in which they were found."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    yield from groups.items()


def mean(rows: list[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def most(rows: list[Row], key: str) -> float:
    return max(row[key] for row in rows)


def table(title: str, head: str, lines: Iterable[str]) -> list[str]:
    """Markdown; the first column is text, and the others are numbers. Nothing where there are no lines."""
    body = [f"| {line} |" for line in lines]
    return [f"{title}:", "", f"| {head} |", "| --- |" + " ---: |" * head.count("|"), *body, ""] if body else []


def verdict(rows: list[Row]) -> str:
    return "" if all(row["ok"] for row in rows) else " MISSED"


def overlap_lines(rows: list[Row], part: str, key: str) -> Iterator[str]:
    for (length, kind), group in of_books(rows, part, "length", key):
        shown = [mean(group, "overlap"), min(row["least"] for row in group)]
        shown += [mean(group, "overlap_free"), min(row["least_free"] for row in group)]
        yield f"{kind}{verdict(group)} | {length} | " + " | ".join(f"{100 * x:.2f}" for x in shown)


def report(rows: list[Row], arguments: argparse.Namespace) -> str:
    overlaps = "| tokens | the same, mean | least list | not forced, mean | least list"
    bars = ", ".join(f"{name} {bar:.0%}" for name, bar in OVERLAP_OF_CODES.items())
    lines = table(
        f"Positions selected, beside the CPU's, in % (bar: {OVERLAP:.0%} on average)",
        f"keys of the prompt {overlaps}",
        overlap_lines(rows, "selections", "prompt"),
    )
    lines += table(
        f"FASA-M beside FASA-C, {arguments.run} tokens written (bar: the same ones)",
        "rows in the cache | tokens | other ones written | led by | logits apart | logits up to",
        (
            f"{size} n_fac{verdict(group)} | {length} | {sum(row['n_other'] for row in group)} "
            f"| {most(group, 'lead'):.2g} | {most(group, 'difference'):.2g} | {most(group, 'largest'):.3g}"
            for (length, size), group in of_books(rows, "placements", "length", "size")
        ),
    )
    lines += table(
        f"The cache of rows, {arguments.run} tokens of a book (bar: {HITS:.0%} of the rows not forced hit, at "
        f"{DEFAULT_SIZE} n_fac)",
        "rows in the cache | tokens | hit, % | not forced, % at least | MB a token over the bus",
        (
            f"{size} n_fac{verdict(group)} | {length} | {100 * mean(group, 'hit'):.1f} "
            f"| {100 * mean(group, 'hit_free'):.1f} | {mean(group, 'bytes_per_token') / 1e6:.3f}"
            for (length, size), group in of_books(rows, "rows", "length", "size")
        ),
    )
    lines += table(
        f"Positions selected by coded dominant keys, beside exact ones', in % (bars: {bars} on average)",
        f"k_dom {overlaps}",
        overlap_lines(rows, "k_dom", "k_dom"),
    )
    return "\n".join(lines)


PARTS: dict[str, Callable[[Fidelity], Iterator[Row]]] = {
    "selections": Fidelity.selections,
    "placements": Fidelity.placements,
    "rows": Fidelity.rows,
    "k_dom": Fidelity.k_dom,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a calibrated GGUF file; default: the demo model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384], help="decoded tokens included")
    parser.add_argument("--tokens", type=int, default=128, help="decoded, where selections are compared")
    parser.add_argument("--run", type=int, default=512, help="decoded by placements and rows")
    parser.add_argument("--books", type=int, default=3, help="that are read, 1 to 3")
    parser.add_argument("--n-fac", type=int, default=Method.n_fac)
    parser.add_argument("--dense-layers", type=int, default=0)
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "gpu_fidelity.json")
    arguments = parser.parse_args()
    least = max(arguments.tokens, arguments.run) + arguments.n_fac
    if min(arguments.tokens, arguments.run) < 1 or min(arguments.lengths) <= least:
        parser.error(f"--lengths must be above {least}, so that all steps are sparse")
    start = time.perf_counter()
    fidelity = Fidelity(arguments)
    rows: list[Row] = []
    n_rows = {"selections": 2, "placements": 2, "rows": len(CACHE_SIZES), "k_dom": len(OVERLAP_OF_CODES)}
    n_all = len(fidelity.cases) * sum(n_rows[part] for part in arguments.parts)
    with progress_bar("reading books") as progress:
        for part in arguments.parts:
            for row in PARTS[part](fidelity):
                rows.append(row)
                if progress is not None:
                    progress(len(rows) / n_all)
                else:
                    print(json.dumps(row), file=sys.stderr, flush=True)
    missed = [row for row in rows if not row["ok"]]
    info, method = fidelity.info, fidelity.method
    about = {
        "device": info.device, "method": str(method), "seconds": time.perf_counter() - start,
        "books": arguments.books, "tokens": arguments.tokens, "run": arguments.run,
    }  # fmt: skip
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(f"{info.device}: {method}, {arguments.books} books\n\n{report(rows, arguments)}")
    print(f"{len(missed)} of {len(rows)} results miss their bar, {about['seconds']:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
