"""What is done with one case: every method answers it, and a record of each comes out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..model import ModelInfo, Progress, Stats
from .cases import Case
from .divergence import Floats, Trace
from .inside import Tap
from .methods import DENSE, Candidate, parse_method
from .overlap import Choices, overlap
from .recall import Recall, add_tapped_steps
from .results import Record
from .session import Session
from .subject import Subject
from .texts import NamedText

PERPLEXITY = "perplexity"
RECALL_K = 256  # as in the paper's table 1
_TAP_EVERY = 128  # decoded tokens


def _counters(stats: Stats) -> Record:
    return {
        "n_decode": stats.n_decode,
        "decode_s": round(stats.decode_s, 4),
        "layers_dense": stats.layers_dense,
        "layers_sparse": stats.layers_sparse,
        "tokens_selected": stats.tokens_selected,
        "kv_bytes": stats.key_bytes + stats.value_bytes,
    }


def _named(task: str, length: int, case: str, candidate: Candidate, **values: Any) -> Record:
    method = candidate.method
    settings = {"method": candidate.label, "spec": candidate.spec, "n_tip": method.n_tip, "n_fac": method.n_fac}
    if candidate.is_coded:
        settings |= {"k_dom": candidate.k_dom, "exact_method": candidate.exact.label}
    return {"task": task, "length": length, "case": case, **settings, **values}


def _with_dense(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Dense attention first, also when its own result is there already: the others are compared with it."""
    rest = [candidate for candidate in candidates if not candidate.is_dense]
    return [next((c for c in candidates if c.is_dense), parse_method(DENSE)), *rest]


def _dense_table(n: int, n_vocab: int) -> Floats:
    """Room for log probabilities float32 ``(n, n_vocab)``: in a file, because a large vocabulary exceeds memory."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(n, n_vocab))


def quick_answers(
    session: Session, case: Case, candidates: Sequence[Candidate], progress: Progress | None = None
) -> Iterator[Record]:
    """As :func:`exact_answers`, but an answer is abandoned at its first wrong token: ``exact`` alone is measured.

    :raises NotEngagedError: a sparse method attended to everything
    """
    session.prefill(case.prompt, progress)
    for candidate in candidates:
        steps = session.forced(candidate.method, case.answer)
        exact = float(all(logits.argmax() == token for logits, token in zip(steps, case.answer, strict=False)))
        yield _named(
            case.task, case.length, case.name, candidate, score=exact, metric="exact", exact=exact,
            n_prompt=len(case.prompt), n_answer=len(case.answer), **_counters(session.stats()),
        )  # fmt: skip


def exact_answers(
    session: Session, case: Case, candidates: Sequence[Candidate], progress: Progress | None = None
) -> Iterator[Record]:
    """The expected answer put through every method token by token.

    ``exact``: each of its tokens, the end included, is the most likely one, so that greedy decoding gives the answer
    and nothing else; ``token``: the share of tokens for which this holds; ``kl`` and ``agree``: against dense.

    :raises NotEngagedError: a sparse method attended to everything
    """
    session.prefill(case.prompt, progress)
    dense = _dense_table(len(case.answer), session.context.n_vocab)
    for candidate in _with_dense(candidates):
        trace = Trace(case.answer, None if candidate.is_dense else dense, dense if candidate.is_dense else None)
        for logits in session.forced(candidate.method, case.answer):
            trace.add(logits)
        stats = session.stats()
        if candidate not in candidates:
            continue
        right = trace.best == np.asarray(case.answer)
        scores = {"exact": float(right.all()), "token": float(right.mean()), **trace.compared()}
        yield _named(
            case.task, case.length, case.name, candidate, score=scores["exact"], metric="exact", **scores,
            n_prompt=len(case.prompt), n_answer=len(case.answer), **_counters(stats),
        )  # fmt: skip


def free_answers(
    session: Session, case: Case, candidates: Sequence[Candidate], subject: Subject, progress: Progress | None = None
) -> Iterator[Record]:
    """Every method generates an answer greedily, which the case's metric scores."""
    session.prefill(case.prompt, progress)
    for candidate in candidates:
        tokens = session.greedy(candidate.method, case.max_tokens, subject.tokenizer.eog_ids)
        text = subject.tokenizer.decode(tokens)
        yield _named(
            case.task, case.length, case.name, candidate, score=case.score(text), metric=case.metric, text=text,
            n_prompt=len(case.prompt), n_answer=len(tokens), n_cut=case.n_cut,
            **_counters(session.stats(must_engage=False)),
        )  # fmt: skip


def perplexity(
    session: Session,
    subject: Subject,
    text: NamedText,
    length: int,
    n_decoded: int,
    candidates: Sequence[Candidate],
    progress: Progress | None = None,
    exact: Session | None = None,
) -> Iterator[Record]:
    """The last ``n_decoded`` of the text's first ``length`` tokens, decoded one by one after a dense prefill.

    ``nll``: mean negative log probability in nats; ``kl`` and ``agree``: against dense, step by step; ``recall`` and
    ``mass``: over every 128th step's sparse layers and query heads, with K = 256; ``overlap`` and ``overlap_free`` of
    candidates with coded keys: over the lists of these steps, see :func:`fasa_py.eval.overlap.overlap`, with those
    that the same method chooses by exact keys.

    :param exact: a session with exact keys, for ``overlap``
    :raises ValueError: the text is shorter than that
    :raises NotEngagedError: a sparse method attended to everything
    """
    ids = subject.begin(text.text)[:length]
    if len(ids) < length or n_decoded >= length:
        raise ValueError(f"perplexity at {length} tokens, {n_decoded} decoded: the text {text.name} has {len(ids)}")
    session.prefill(ids[: length - n_decoded], progress)
    tokens = ids[length - n_decoded :]
    dense = _dense_table(n_decoded, session.context.n_vocab)
    if exact is not None:
        exact.prefill(ids[: length - n_decoded], progress)
    for candidate in _with_dense(candidates):
        trace = Trace(tokens, None if candidate.is_dense else dense, dense if candidate.is_dense else None)
        recall, choices = _trace_with_recall(session, subject.info, candidate, tokens, trace)
        stats = session.stats()
        if candidate not in candidates:
            continue
        kept = {}
        if candidate.is_coded and exact is not None:
            _, others = _trace_with_recall(exact, subject.info, candidate, tokens, Trace(tokens))
            kept = overlap(choices, others, candidate.method)
        nll = -float(trace.logp.mean())
        yield _named(
            PERPLEXITY, length, text.name, candidate, nll=nll, ppl=math.exp(nll), **trace.compared(),
            **recall.result(), **kept, n_prompt=length - n_decoded, n_answer=n_decoded, **_counters(stats),
        )  # fmt: skip


def _trace_with_recall(
    session: Session, info: ModelInfo, candidate: Candidate, tokens: Sequence[int], trace: Trace
) -> tuple[Recall, Choices]:
    recall, choices = Recall(), Choices()
    steps = session.forced(candidate.method, tokens)
    trace.add(next(steps))
    for i in range(1, len(tokens)):
        if candidate.is_dense or i % _TAP_EVERY != 1:
            trace.add(next(steps))
            continue
        with closing(Tap(session.context, info, 1)) as tap:
            trace.add(next(steps))
            add_tapped_steps(recall, tap, session.context, info, RECALL_K)
            choices.add(tap, info)
    return recall, choices
