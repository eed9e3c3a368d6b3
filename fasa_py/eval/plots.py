"""Results as pictures. Needs matplotlib (``pip install "fasa_py[plot]"``)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from .measure import PERPLEXITY
from .report import Table, summary
from .results import Record


def _figure(width: float, height: float, n_panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its panels, one below the other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError('plots need matplotlib: pip install "fasa_py[plot]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(n_panels, squeeze=False)[:, 0])


def _name(length: int) -> str:
    return f"{length:,} tokens" if length else "given data"


def _bars(axes: Any, groups: Sequence[str], bars: Mapping[str, Sequence[float]], base: float = 0) -> None:
    """At each place a group of bars that rise from the base to their values; where a value is NaN, a gap."""
    width = 0.8 / max(1, len(bars))
    for i, (name, values) in enumerate(bars.items()):
        axes.bar(_places(i, width, len(groups)), [v - base for v in values], width, bottom=base, label=name)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlim(-0.5, len(groups) - 0.5)


def _places(i: int, width: float, n_groups: int) -> list[float]:
    """Where the i-th bar of each group stands."""
    return [j - 0.4 + (i + 0.5) * width for j in range(n_groups)]


def _legend(axes: Any) -> None:
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def plot_accuracy(records: Sequence[Record], path: Path) -> None:
    """Bars: the mean over tasks by method, a group a length, with standard errors."""
    lengths = sorted({r["length"] for r in records if "score" in r})
    tables = {length: Table([r for r in records if r["task"] != PERPLEXITY], length) for length in lengths}
    methods = list(dict.fromkeys(method for table in tables.values() for method in table.methods))
    figure, [axes] = _figure(max(6.0, 0.6 * len(methods) * len(lengths)), 4)
    width = 0.8 / max(1, len(methods))
    for i, method in enumerate(methods):
        means = [tables[length].mean(method, tables[length].tasks) for length in lengths]
        heights, errors = [100 * m.mean for m in means], [100 * m.error for m in means]
        axes.bar(_places(i, width, len(lengths)), heights, width, yerr=errors, label=method)
    axes.set_xticks(range(len(lengths)), [_name(length) for length in lengths])
    axes.set_ylabel("answers, %")
    axes.set_ylim(0, 105)
    _legend(axes)
    figure.savefig(path, dpi=120)


def plot_perplexity(records: Sequence[Record], path: Path) -> None:
    """Bars by method, a group a length: perplexity to dense attention's, and the KL divergence from it."""
    by_length = summary([r for r in records if r["task"] == PERPLEXITY])
    methods = list(dict.fromkeys(method for own in by_length.values() for method in own))
    groups = [_name(int(length)) for length in by_length]
    figure, panels = _figure(max(6.0, 0.6 * len(methods) * len(groups)), 6, 2)
    for axes, measure, base, label in zip(
        panels, ("ratio", "kl"), (1, 0), ("perplexity / dense", "KL from dense, nats"), strict=True
    ):
        made = {m: [own[m]["perplexity"][measure] if m in own else None for own in by_length.values()] for m in methods}
        _bars(axes, groups, {m: [math.nan if v is None else v for v in values] for m, values in made.items()}, base)
        axes.axhline(base, color="black", linewidth=0.8)
        axes.set_ylabel(label)
    _legend(panels[0])
    figure.savefig(path, dpi=120)


def plot_budgets(records: Sequence[Record], path: Path) -> bool:
    """Lines: the mean over tasks by ``n_fac``, a line for each method, ``n_tip`` and length. False: only one budget."""
    answers = [r for r in records if "score" in r]
    lines: dict[str, dict[float, str]] = defaultdict(dict)
    for r in answers:
        if r["layers_sparse"]:
            tip = "" if r["n_tip"] is None else f", n_tip {r['n_tip']}"
            lines[r["spec"] + tip][r["n_fac"]] = r["method"]
    if all(len(line) < 2 for line in lines.values()):
        return False
    figure, [axes] = _figure(7, 4)
    for length in sorted({r["length"] for r in answers}):
        table = Table(answers, length)
        for name, line in lines.items():
            budgets = sorted(budget for budget in line if line[budget] in table.methods)
            means = [100 * table.mean(line[budget], table.tasks).mean for budget in budgets]
            axes.plot(budgets, means, marker="o", label=f"{name}, {length:,}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("n_fac")
    axes.set_ylabel("answers, %")
    _legend(axes)
    figure.savefig(path, dpi=120)
    return True


def plot_all(records: Sequence[Record], folder: Path) -> list[Path]:
    """Every picture that the records give; returns the files.

    :raises UnsupportedError: matplotlib is not installed
    """
    made = []
    if any("score" in r for r in records):
        plot_accuracy(records, folder / "accuracy.png")
        made.append(folder / "accuracy.png")
        if plot_budgets(records, folder / "budgets.png"):
            made.append(folder / "budgets.png")
    if any("nll" in r for r in records):
        plot_perplexity(records, folder / "perplexity.png")
        made.append(folder / "perplexity.png")
    return made
