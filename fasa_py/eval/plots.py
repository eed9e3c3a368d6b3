"""Results as pictures. Needs matplotlib (``pip install "fasa_py[plot]"``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from .measure import PERPLEXITY
from .report import Table
from .results import Record


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError('plots need matplotlib: pip install "fasa_py[plot]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def plot_accuracy(records: Sequence[Record], path: Path) -> None:
    """Bars: the mean over tasks by method, a group a length, with standard errors."""
    lengths = sorted({r["length"] for r in records if "score" in r})
    tables = {length: Table([r for r in records if r["task"] != PERPLEXITY], length) for length in lengths}
    methods = list(dict.fromkeys(method for table in tables.values() for method in table.methods))
    figure, axes = _figure(max(6.0, 0.6 * len(methods) * len(lengths)), 4)
    width = 0.8 / max(1, len(methods))
    for i, method in enumerate(methods):
        means = [tables[length].mean(method, tables[length].tasks) for length in lengths]
        places = [j - 0.4 + (i + 0.5) * width for j in range(len(lengths))]
        axes.bar(places, [100 * m.mean for m in means], width, yerr=[100 * m.error for m in means], label=method)
    axes.set_xticks(range(len(lengths)), [f"{length:,} tokens" if length else "given data" for length in lengths])
    axes.set_ylabel("answers, %")
    axes.set_ylim(0, 105)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
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
    figure, axes = _figure(7, 4)
    for length in sorted({r["length"] for r in answers}):
        table = Table(answers, length)
        for name, line in lines.items():
            budgets = sorted(budget for budget in line if line[budget] in table.methods)
            means = [100 * table.mean(line[budget], table.tasks).mean for budget in budgets]
            axes.plot(budgets, means, marker="o", label=f"{name}, {length:,}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("n_fac")
    axes.set_ylabel("answers, %")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
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
    return made
