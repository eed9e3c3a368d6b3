"""Does it matter which dims form a chunk? Dominant sets from RoPE's pairs, from wrong pairs, and drawn at random.

    python bench/pairing.py MODEL.gguf CALIBRATION.txt [--length 8192]

Chunks are ranked by contextual agreement over decode steps of the calibration text (mean over a KV head's queries);
then, over decode steps of the three built-in novels: the share of each query head's true top 256 that the best 256
positions by a set's scores hold (recall), and the share of its softmax (mass), bare and with the first 4 and last 32
positions forced. All of it in NumPy, over queries and keys that the engine recorded with dense attention.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from fasa_py.eval.inside import Tap, read_keys
from fasa_py.eval.session import Session
from fasa_py.eval.subject import Subject
from fasa_py.eval.texts import load_texts
from fasa_py.method import Method
from fasa_py.model import Context, ContextSettings

K = 256
N_SINK, N_RECENT = 4, 32
FIRST_LAYER = 1  # layers before it are dense by default

# One layer of one step for one KV head: queries (group, head_dim), keys (n_pos, head_dim), index (layer, KV head).
Sample = tuple[np.ndarray, np.ndarray, tuple[int, int]]


def samples(session: Session, subject: Subject, text: str, length: int, n_steps: int) -> Iterator[Sample]:
    """Of ``n_steps`` decode steps after ``length`` tokens of a text."""
    info = subject.info
    group = info.n_head // info.n_head_kv
    ids = subject.begin(text)[: length + n_steps]
    session.prefill(ids[:length])
    session.engage(Method("full"))
    with closing(Tap(session.context, info, n_steps)) as tap:
        for token in ids[length:]:
            session.context.decode(0, [token])
        for step in range(tap.n_steps):
            for layer in range(FIRST_LAYER, info.n_layer):
                seen = tap.read(step, layer)
                for head in range(info.n_head_kv):
                    keys = read_keys(session.context, info, seen.seq, layer, head, seen.n_pos)
                    yield seen.q[head * group : (head + 1) * group], keys, (layer, head)


def top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argpartition(-scores, k - 1)[:k]


def agreement(pairs: np.ndarray, calibration: list[Sample]) -> dict[tuple[int, int], np.ndarray]:
    """Contextual agreement of every pair of dims (n_pair, 2), mean over queries, for each layer and KV head."""
    sums: dict[tuple[int, int], np.ndarray] = {}
    for queries, keys, where in calibration:
        for q in queries:
            products = keys * q
            best = top(products.sum(axis=1), K)
            parts = products[:, pairs].sum(axis=2)
            hits = [np.isin(top(part, K), best, assume_unique=True).mean() for part in parts.T]
            sums[where] = sums.get(where, 0) + np.array(hits)
    return sums


def chosen(scores: np.ndarray, forced: bool) -> np.ndarray:
    if not forced:
        return top(scores, K)
    scores = scores.copy()
    scores[:N_SINK] = scores[len(scores) - N_RECENT :] = np.inf
    return top(scores, K)


def measure(
    dims_of: Callable[[tuple[int, int]], np.ndarray], forced: bool, held_out: list[Sample]
) -> tuple[float, float]:
    """Recall and mass, means over steps, layers and query heads; the group ranks by the sum of its heads' scores."""
    recalls, masses = [], []
    for queries, keys, where in held_out:
        dims = dims_of(where)
        positions = chosen(keys[:, dims] @ queries.sum(axis=0)[dims], forced)
        for q in queries:
            scores = keys @ q
            weights = np.exp((scores - scores.max()) / np.sqrt(len(q)))
            recalls.append(np.isin(top(scores, K), positions, assume_unique=True).mean())
            masses.append(weights[positions].sum() / weights.sum())
    return float(np.mean(recalls)), float(np.mean(masses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="text that the sets are chosen on")
    parser.add_argument("--length", type=int, default=8192, help="tokens before the steps")
    parser.add_argument("--calibration-length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--n-tip", type=int, default=16)
    args = parser.parse_args()
    subject = Subject(args.model)
    n_ctx = max(args.length, args.calibration_length) + args.steps
    session = Session(Context(subject.model, ContextSettings(n_ctx=n_ctx, method=Method("full"))))
    text = args.calibration.read_text(encoding="utf-8")
    calibration = list(samples(session, subject, text, args.calibration_length, args.steps))
    held_out = [s for book in load_texts() for s in samples(session, subject, book.text, args.length, args.steps)]

    dims = np.arange(subject.info.head_dim)
    adjacent, halves = dims.reshape(-1, 2), dims.reshape(2, -1).T
    right, wrong = (adjacent, halves) if subject.info.rope_layout == "interleaved" else (halves, adjacent)
    rng = np.random.default_rng(0)
    print(f"n_tip {args.n_tip}, {args.length} tokens; recall and mass in percent, bare and with forced positions")
    for name, pairs in (("RoPE's pairs", right), ("wrong pairs", wrong), ("random pairs", right)):
        ca = agreement(pairs, calibration)
        order = {w: rng.permutation(len(pairs)) if name.startswith("random") else np.argsort(-s) for w, s in ca.items()}
        sets = {where: pairs[ranking[: args.n_tip]].ravel() for where, ranking in order.items()}
        numbers = [100 * x for forced in (False, True) for x in measure(sets.__getitem__, forced, held_out)]
        print(f"{name:14}" + "".join(f"{x:8.1f}" for x in numbers))


if __name__ == "__main__":
    main()
