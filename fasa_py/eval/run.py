""":func:`run`: a whole evaluation, in an order in which any part of it is balanced over tasks and lengths."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..method import Method
from ..model import Context, ContextSettings
from ..progress import progress_bar
from .cases import make_case
from .measure import PERPLEXITY, exact_answers, free_answers, perplexity, quick_answers
from .methods import Candidate, expand
from .report import write_tables
from .results import Record, Results
from .session import NotEngagedError, Session
from .subject import Subject
from .tasks import FAMILIES, Haystack
from .texts import NamedText, load_texts
from .userdata import UserData

ALL_TASKS = (*FAMILIES, PERPLEXITY)
_ROOM = 512  # tokens of context beyond the length, for a chat template and answers of other words


@dataclass(frozen=True)
class Settings:
    """What an evaluation consists of. See :func:`run`."""

    tasks: Sequence[str] = ALL_TASKS
    methods: Sequence[str] = ("dense", "fasa")
    lengths: Sequence[int] = (4096, 8192)
    n_cases: int = 16
    n_tip: Sequence[int | float] = ()
    n_fac: Sequence[int | float] = ()
    seed: int = 0
    answers: str = "auto"
    quick: bool = False
    n_decoded: int = 2048
    texts: Sequence[str | Path] = ()
    data: Sequence[str | Path] = ()
    longbench_config: str | Path | None = None
    max_tokens: int | None = None
    n_ctx: int | None = None
    split: bool = False
    minutes: float | None = None

    def check(self) -> None:
        """:raises ValueError: a setting that makes no sense; says which"""
        unknown = [task for task in self.tasks if task not in ALL_TASKS]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}; there are {', '.join(ALL_TASKS)}")
        if self.answers not in ("auto", "exact", "free"):
            raise ValueError(f"answers must be auto, exact or free, not {self.answers!r}")
        if self.n_cases < 1 or any(length < 512 for length in self.lengths):
            raise ValueError("an evaluation needs at least one case, and lengths of 512 tokens or more")
        if PERPLEXITY in self.tasks and not 2 <= self.n_decoded < min(self.lengths, default=0):
            raise ValueError(f"n_decoded is {self.n_decoded}: expected at least 2 and less than every length")


class _Item(NamedTuple):
    """One unit of work: a prompt and all methods."""

    task: str
    length: int
    case: str
    work: Callable[[Session, Sequence[Candidate]], Iterator[Record]]


class _Bench:
    """A model with a context, and the work to be done with it."""

    def __init__(self, subject: Subject, settings: Settings, candidates: Sequence[Candidate]) -> None:
        self._subject, self._settings = subject, settings
        self._data = [UserData(path, settings.longbench_config) for path in settings.data]
        self._texts = load_texts(settings.texts)
        self._haystack = Haystack([text.text for text in self._texts])
        self._exact = settings.answers == "exact" or (settings.answers == "auto" and subject.answers_exactly)
        n_ctx = max(settings.lengths, default=0) + _ROOM if settings.tasks else 0
        if self._data:
            n_ctx = max(n_ctx, settings.n_ctx or subject.info.n_ctx_train)
        method = Method("full")
        if settings.split:
            method = next((c.method for c in candidates if c.method.name == "fasa"), method)
        self._opened = ExitStack()
        self._session = self._open(ContextSettings(n_ctx=n_ctx, method=method))
        self._coded: dict[object, Session] = {}  # caches are laid out for one method's dominant keys

    def _open(self, settings: ContextSettings) -> Session:
        return Session(self._opened.enter_context(closing(Context(self._subject.model, settings))))

    def close(self) -> None:
        """Free the contexts."""
        self._opened.close()

    def _session_of(self, candidate: Candidate) -> Session:
        if not candidate.is_coded:
            return self._session
        m = candidate.method
        key = (candidate.k_dom, m.n_tip, m.criterion, m.dense_layers)
        if key not in self._coded:
            n_ctx = self._session.context.n_ctx
            self._coded[key] = self._open(ContextSettings(n_ctx=n_ctx, method=m, k_dom=candidate.k_dom))
        return self._coded[key]

    def records(self, item: _Item, candidates: Sequence[Candidate]) -> Iterator[Record]:
        """Of one item, by all candidates, each in a session whose cache suits it."""
        groups: dict[int, tuple[Session, list[Candidate]]] = {}
        for candidate in candidates:
            session = self._session_of(candidate)
            groups.setdefault(id(session), (session, []))[1].append(candidate)
        for session, group in groups.values():
            yield from item.work(session, group)

    def items(self) -> Iterator[_Item]:
        """All work, one case of everything before the second case of anything."""
        s = self._settings
        n_generated = s.n_cases if set(s.tasks) - {PERPLEXITY} else 0
        n_texts = len(self._texts) if PERPLEXITY in s.tasks else 0
        n_rounds = max([n_generated, n_texts, *map(len, self._data)])
        for i in range(n_rounds):
            for length in s.lengths:
                for task in s.tasks:
                    if task == PERPLEXITY and i < len(self._texts):
                        yield self._perplexity(self._texts[i], length)
                    elif task != PERPLEXITY and i < s.n_cases:
                        yield self._generated(task, length, i)
            for data in self._data:
                if i < len(data):
                    yield self._given(data, i)

    def _perplexity(self, text: NamedText, length: int) -> _Item:
        def work(session: Session, methods: Sequence[Candidate]) -> Iterator[Record]:
            exact = None if session is self._session else self._session
            n_decoded = self._settings.n_decoded
            return perplexity(session, self._subject, text, length, n_decoded, methods, exact=exact)

        return _Item(PERPLEXITY, length, text.name, work)

    def _generated(self, task: str, length: int, i: int) -> _Item:
        def work(session: Session, methods: Sequence[Candidate]) -> Iterator[Record]:
            case = make_case(task, length, i, self._settings.seed, self._subject, self._haystack)
            if self._exact:
                return (quick_answers if self._settings.quick else exact_answers)(session, case, methods)
            return free_answers(session, case, methods, self._subject)

        return _Item(task, length, str(i), work)

    def _given(self, data: UserData, i: int) -> _Item:
        def work(session: Session, methods: Sequence[Candidate]) -> Iterator[Record]:
            return free_answers(session, case, methods, self._subject)

        case = data.case(i, self._subject, self._session.context.n_ctx, self._settings.max_tokens)
        return _Item(case.task, 0, case.name, work)


def _not_engaged(records: Sequence[Record], candidates: Sequence[Candidate]) -> list[str]:
    """Where a sparse method decoded all cases of a task and length without a single sparse layer, in words."""
    labels = {candidate.label for candidate in candidates if not candidate.is_dense}
    n_sparse: dict[tuple[str, str, int], int] = defaultdict(int)
    for r in records:
        if r["method"] in labels and r["n_decode"] > 0:
            n_sparse[r["method"], r["task"], r["length"]] += r["layers_sparse"]
    return [
        f"{method} attended to everything in every case of {task}{f' at {length} tokens' if length else ''}"
        for (method, task, length), n in n_sparse.items()
        if n == 0
    ]


def run(
    model: str | os.PathLike[str] | Subject | None = None,
    *,
    out: str | os.PathLike[str],
    n_threads: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> list[Record]:
    """Evaluate methods on a model. Results are appended to ``out/results.jsonl``; a second call continues the first.

    However a run ends, ``out/results.md`` and ``out/results.json`` then have the tables of all results that there are.

    Parameters
    ----------
    model
        The GGUF file; None: the embedded demo model.
    tasks
        Families of generated tasks (:data:`fasa_py.eval.tasks.FAMILIES`) and ``perplexity``; all of them by default.
    methods
        See :func:`fasa_py.eval.methods.parse_method`. Default: ``dense``, ``fasa``.
    lengths
        Tokens of prompt and answer together.
    n_cases
        Cases of each family and length.
    n_tip, n_fac
        Budgets: every method is evaluated with all of those that apply to it.
    seed
        Another seed gives other cases.
    answers
        ``exact``: the expected answer is put through the model, and each of its tokens must be the most likely one;
        ``free``: the model answers in its own words, which must contain what was asked for; ``auto``: ``exact`` for the
        demo model, which was trained on these very phrasings.
    quick
        Abandon an exact answer at its first wrong token, which decides it: neither the share of right tokens nor the
        divergence from dense is measured.
    n_decoded
        Tokens at the end of each length that ``perplexity`` decodes one by one.
    texts
        Text files to hide tasks in and to measure perplexity on; default: three novels, see ``data/README.md``.
    data, longbench_config, max_tokens, n_ctx
        JSONL files of questions (:mod:`fasa_py.eval.userdata`), LongBench's configuration, tokens of an answer,
        tokens of context.
    split
        Store keys as the first fasa method does, dominant chunks apart, instead of whole.
    minutes
        Begin no new case after this time.

    Raises
    ------
    NotEngagedError
        A sparse method attended to everything, in all cases of a task and length.
    ValueError
        A setting makes no sense, or ``out`` has results of another model or other cases.
    """
    chosen = Settings(**settings)
    chosen.check()
    expand(chosen.methods)  # what is misspelt is found before the model is loaded
    with ExitStack() as opened:
        if isinstance(model, Subject):
            subject = model
        else:
            with progress_bar("loading") as progress:
                subject = opened.enter_context(closing(Subject(model, n_threads, device, progress)))
        candidates = expand(chosen.methods, chosen.n_tip, chosen.n_fac, subject.default_n_tip)
        header = {**subject.identity(), "seed": chosen.seed, "n_decoded": chosen.n_decoded, "split": chosen.split,
                  "quick": chosen.quick,
                  "texts": [Path(text).name for text in chosen.texts]}  # fmt: skip
        bench = opened.enter_context(closing(_Bench(subject, chosen, candidates)))
        results = opened.enter_context(Results(Path(out), header))
        try:
            _work_through(bench, candidates, results, chosen.minutes)
        finally:
            not_engaged = _not_engaged(results.records, candidates)
            if results.records:
                write_tables(results.records, Path(out), not_engaged)
    if not_engaged:
        raise NotEngagedError("; ".join(not_engaged) + ": texts must be longer than n_fac and dense_below")
    return results.records


def _work_through(bench: _Bench, candidates: Sequence[Candidate], results: Results, minutes: float | None) -> None:
    started = time.monotonic()
    items = list(bench.items())
    with progress_bar("evaluating") as progress:
        for i, item in enumerate(items):
            missing = [c for c in candidates if (item.task, item.length, item.case, c.label) not in results.done]
            if missing and minutes is not None and time.monotonic() - started > 60 * minutes:
                return
            for n, record in enumerate(bench.records(item, missing) if missing else (), 1):
                results.add(record)
                if progress is not None:
                    progress((i + n / len(missing)) / len(items))
