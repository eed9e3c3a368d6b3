"""Results as tables: accuracy by method, length and task with paired errors, perplexity, divergence, recall."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cases import SHORT_FAMILIES
from .measure import PERPLEXITY
from .methods import DENSE
from .results import Record


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float  # NaN: fewer than two values in a stratum
    n: int


def stratified(strata: Iterable[Sequence[float]]) -> Estimate:
    """The mean of the strata's means, each stratum (task) counting the same however many cases it has."""
    groups = [np.asarray(values, float) for values in strata if len(values)]
    if not groups:
        return Estimate(math.nan, math.nan, 0)
    variances = [g.var(ddof=1) / len(g) if len(g) > 1 else math.nan for g in groups]
    error = math.sqrt(sum(variances)) / len(groups)
    return Estimate(float(np.mean([g.mean() for g in groups])), error, sum(map(len, groups)))


class Table:
    """The records of one length that have a score, by task and method."""

    def __init__(self, records: Iterable[Record], length: int, metric: str = "score") -> None:
        self._cells: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        self.tasks: list[str] = []
        self.methods: list[str] = []
        for record in records:
            if record["length"] != length or metric not in record:
                continue
            task, method = record["task"], record["method"]
            self._cells[method][task][record["case"]] = record[metric]
            for value, seen in ((task, self.tasks), (method, self.methods)):
                if value not in seen:
                    seen.append(value)
        self.methods.sort(key=lambda method: method != DENSE)

    def values(self, method: str, task: str) -> list[float]:
        return list(self._cells[method][task].values())

    def mean(self, method: str, tasks: Sequence[str]) -> Estimate:
        return stratified(self.values(method, task) for task in tasks)

    def difference(self, method: str, tasks: Sequence[str], reference: str = DENSE) -> Estimate:
        """To the reference, over the cases that both answered."""
        strata = []
        for task in tasks:
            ours, theirs = self._cells[method][task], self._cells[reference][task]
            strata.append([ours[case] - theirs[case] for case in ours if case in theirs])
        return stratified(strata)


_NOTHING = "-"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _number(value: float, digits: int = 1) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _percent(estimate: Estimate) -> str:
    return _number(100 * estimate.mean)


def _signed(estimate: Estimate) -> str:
    if estimate.n == 0:
        return _NOTHING
    error = "" if math.isnan(estimate.error) else f" ± {100 * estimate.error:.1f}"
    return f"{100 * estimate.mean:+.1f}{error}"


def accuracy_table(records: Sequence[Record], length: int) -> str:
    """Per method: each task's score in percent, the mean over tasks and over short answers, both against dense."""
    table = Table([r for r in records if r["task"] != PERPLEXITY], length)
    short = [task for task in table.tasks if task in SHORT_FAMILIES]
    both = 0 < len(short) < len(table.tasks)
    header = ["method", "cases", *table.tasks, "mean", "to dense"] + (["short", "to dense"] if both else [])
    rows = []
    for method in table.methods:
        total = table.mean(method, table.tasks)
        row = [method, str(total.n)] + [_percent(table.mean(method, [task])) for task in table.tasks]
        row += [_percent(total), _signed(table.difference(method, table.tasks))]
        if both:
            row += [_percent(table.mean(method, short)), _signed(table.difference(method, short))]
        rows.append(row)
    return _markdown(header, rows)


def _weighted(records: Sequence[Record], name: str) -> float:
    """Mean over decoded tokens; NaN when nothing was recorded."""
    pairs = [(r[name], r["n_answer"]) for r in records if name in r]
    return sum(v * n for v, n in pairs) / sum(n for _, n in pairs) if pairs else math.nan


def fidelity_table(records: Sequence[Record], length: int) -> str:
    """Per method over all answers: token accuracy (mean over tasks), KL divergence and agreement with dense, cost."""
    answers = [r for r in records if r["task"] != PERPLEXITY and r["length"] == length and "token" in r]
    tokens = Table(answers, length, "token")
    rows = []
    for method in tokens.methods:
        own = [r for r in answers if r["method"] == method]
        rows.append([
            method, _percent(tokens.mean(method, tokens.tasks)), _number(_weighted(own, "kl"), 4),
            _number(100 * _weighted(own, "agree"), 2), *_cost_cells(own),
        ])  # fmt: skip
    return _markdown(["method", "tokens right %", "KL, nats", "agree %", *_COST], rows)


_COUNTERS = ("n_decode", "decode_s", "layers_dense", "layers_sparse", "tokens_selected", "kv_bytes")
_COST = ("positions a layer", "KV read a step, MiB", "steps/s")


def _per(total: float, n: float) -> float:
    return total / n if n else math.nan


def _cost(records: Sequence[Record]) -> dict[str, float]:
    """What decoding read, in sum and on average.

    ``positions_per_layer``: of a sparse layer, summed over its lists (one a KV head, or one a head).
    """
    cost: dict[str, float] = {name: sum(r[name] for r in records) for name in _COUNTERS}
    cost["positions_per_layer"] = _per(cost["tokens_selected"], cost["layers_sparse"])
    cost["kv_bytes_per_step"] = _per(cost["kv_bytes"], cost["n_decode"])
    cost["steps_per_s"] = _per(cost["n_decode"], cost["decode_s"])
    return cost


def _cost_cells(records: Sequence[Record]) -> list[str]:
    cost = _cost(records)
    cells = [_number(cost["positions_per_layer"], 0), _number(cost["kv_bytes_per_step"] / 2**20, 2)]
    return [*cells, _number(cost["steps_per_s"], 0)]


def perplexity_table(records: Sequence[Record], length: int) -> str:
    """Per method: perplexity on each text and its ratio to dense, divergence, recall of the true top-256."""
    own = [r for r in records if r["task"] == PERPLEXITY and r["length"] == length]
    table = Table(own, length, "nll")
    texts = sorted({r["case"] for r in own})
    rows = []
    for method in table.methods:
        mine = {r["case"]: r for r in own if r["method"] == method}
        theirs = {r["case"]: r for r in own if r["method"] == DENSE}
        row = [method, str(len(mine))]
        for text in texts:
            row.append(_number(mine[text]["ppl"], 3) if text in mine else _NOTHING)
            ratio = math.exp(mine[text]["nll"] - theirs[text]["nll"]) if text in mine and text in theirs else math.nan
            row.append(_number(ratio, 4))
        values = list(mine.values())
        ratio = math.exp(table.difference(method, [PERPLEXITY]).mean)
        row += [_number(ratio, 4), _number(_weighted(values, "kl"), 4), _number(100 * _weighted(values, "agree"), 2)]
        row += [_number(100 * _weighted(values, name)) for name in ("recall", "mass")]
        rows.append(row + _cost_cells(values))
    header = [
        "method",
        "texts",
        *(name for text in texts for name in (text, "ratio")),
        "ratio, all",
        "KL, nats",
        "agree %",
    ]
    return _markdown([*header, "recall %", "mass %", *_COST], rows)


_ONE_SIDED_95 = 1.645  # standard errors


def coded_methods(records: Sequence[Record], length: int) -> dict[str, dict[str, Any]]:
    """Of each method with coded dominant keys, against the same method with exact ones.

    ``loss``: paired, over the cases that both answered, the mean of tasks; ``loss_95``: its upper 95 % bound
    (one-sided); ``ratio``: of perplexities; ``overlap``, ``overlap_free``: of what is selected.
    """
    here = [r for r in records if r["length"] == length]
    answers = Table([r for r in here if r["task"] != PERPLEXITY], length)
    texts = Table([r for r in here if r["task"] == PERPLEXITY], length, "nll")
    out = {}
    for method, exact in {r["method"]: r["exact_method"] for r in here if "exact_method" in r}.items():
        difference = answers.difference(method, answers.tasks, exact)
        own = [r for r in here if r["method"] == method]
        out[method] = {
            "cases": difference.n,
            "loss": -difference.mean,
            "loss_95": -difference.mean + _ONE_SIDED_95 * difference.error,
            "ratio": math.exp(texts.difference(method, texts.tasks, exact).mean),
            "overlap": _weighted(own, "overlap"),
            "overlap_free": _weighted(own, "overlap_free"),
        }
    return out


def coded_table(records: Sequence[Record], length: int) -> str:
    """What :func:`coded_methods` has, losses in points."""
    rows = []
    for method, values in coded_methods(records, length).items():
        loss, most = _number(100 * values["loss"]), _number(100 * values["loss_95"])
        overlaps = [_number(100 * values[name]) for name in ("overlap", "overlap_free")]
        rows.append([method, str(values["cases"]), loss, most, _number(values["ratio"], 4), *overlaps])
    header = ["method", "cases", "loss", "at most (95 %)", "perplexity ratio", "selected alike %", "not forced %"]
    return _markdown(header, rows)


def markdown(records: Sequence[Record]) -> str:
    """All tables. Lengths are in tokens; 0 stands for data of the user."""
    parts = []
    for length in sorted({r["length"] for r in records}):
        here = [r for r in records if r["length"] == length]
        where = f"{length} tokens" if length else "given data"
        tables: list[tuple[str, Callable[[Sequence[Record], int], str], bool]] = [
            ("Answers, %", accuracy_table, any("score" in r for r in here)),
            ("Tokens of answers", fidelity_table, any("token" in r for r in here)),
            ("Perplexity", perplexity_table, any("nll" in r for r in here)),
            ("Coded dominant keys against exact ones", coded_table, any("exact_method" in r for r in here)),
        ]
        parts += [f"## {title}, {where}\n\n{make(records, length)}" for title, make, present in tables if present]
    return "\n".join(parts)


def _ratio(records: Sequence[Record], length: int, method: str) -> float:
    """Perplexity to dense attention's, over the texts that both were measured on; NaN: there are none."""
    return math.exp(Table(records, length, "nll").difference(method, [PERPLEXITY]).mean)


def _answers_summary(records: Sequence[Record], length: int, method: str) -> dict[str, Any]:
    """Of one method: what :func:`accuracy_table` and :func:`fidelity_table` have."""
    table, tokens = Table(records, length), Table(records, length, "token")
    own = [r for r in records if r["method"] == method]

    def estimates(tasks: Sequence[str]) -> dict[str, Any]:
        mean, difference = table.mean(method, tasks), table.difference(method, tasks)
        return {"mean": mean._asdict(), "difference": difference._asdict()}

    return {
        "tasks": {task: table.mean(method, [task]).mean for task in table.tasks},
        **estimates(table.tasks),
        "short": estimates([task for task in table.tasks if task in SHORT_FAMILIES]),
        "answers": {
            "token": tokens.mean(method, tokens.tasks).mean,
            **{name: _weighted(own, name) for name in ("kl", "agree")},
            **_cost(own),
        },
    }


def _perplexity_summary(records: Sequence[Record], length: int, method: str) -> dict[str, Any]:
    """Of one method: what :func:`perplexity_table` has."""
    own = [r for r in records if r["method"] == method]
    texts = {
        r["case"]: {"ppl": r["ppl"], "ratio": _ratio([s for s in records if s["case"] == r["case"]], length, method)}
        for r in own
    }
    measures = {name: _weighted(own, name) for name in ("kl", "agree", "recall", "mass")}
    return {"ratio": _ratio(records, length, method), "texts": texts, **measures, **_cost(own)}


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """The same as nested numbers, by length and method; scores are shares, and what was not measured is None.

    ``tasks``: the score of each; ``mean`` and ``difference`` (to dense): over tasks; ``short``: both, over those with
    short answers; ``answers`` and ``perplexity``: divergence, agreement, recall, and the counters of decoding.
    """
    out: dict[str, Any] = {}
    for length in sorted({r["length"] for r in records}):
        here = [r for r in records if r["length"] == length]
        answers = [r for r in here if r["task"] != PERPLEXITY]
        texts = [r for r in here if r["task"] == PERPLEXITY]
        coded = coded_methods(records, length)
        out[str(length)] = {}
        for method in dict.fromkeys([*Table(answers, length).methods, *Table(texts, length, "nll").methods]):
            entry = _answers_summary(answers, length, method)
            entry["perplexity"] = _perplexity_summary(texts, length, method)
            if method in coded:
                entry["to_exact"] = coded[method]
            out[str(length)][method] = _without_nan(entry)
    return out


def write_tables(records: Sequence[Record], folder: Path, warnings: Sequence[str] = ()) -> None:
    """``results.md``, headed by the warnings, and ``results.json``."""
    head = "".join(f"**{warning}**\n\n" for warning in warnings)
    (folder / "results.md").write_text(head + markdown(records), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(summary(records), indent=1) + "\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
