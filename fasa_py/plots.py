"""Figures of a calibration table, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .calibration import CalibrationTable
from .errors import FasaError


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise FasaError("plots need matplotlib: pip install 'fasa_py[plot]'") from error
    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot_table(table: CalibrationTable, path: str | os.PathLike[str]) -> None:
    """Write two panels as an image: contextual agreement of every head and chunk as a heat map, and its cumulative
    distribution in each layer (figures 1 and 12 of the paper).

    :param path: the ending names the format, e.g. ``.png``
    :raises FasaError: matplotlib is not installed
    :raises OSError: the file cannot be written
    """
    pyplot = _pyplot()
    n_layer, n_head, n_chunk = table.ca.shape
    figure, (heat, lines) = pyplot.subplots(1, 2, figsize=(14, 6), constrained_layout=True)
    image = heat.imshow(table.ca.reshape(-1, n_chunk), aspect="auto", interpolation="nearest", vmin=0.0, cmap="viridis")
    heat.set(
        xlabel="chunk (fast to slow rotation)",
        ylabel=f"layer ({n_head} heads each)",
        yticks=np.arange(n_layer) * n_head - 0.5,
        yticklabels=range(n_layer),
        title=f"contextual agreement, K = {table.k}",
    )
    figure.colorbar(image, ax=heat)
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.9, n_layer))
    share = np.arange(1, n_head * n_chunk + 1) / (n_head * n_chunk)
    for layer, colour in enumerate(colours):
        lines.plot(np.sort(table.ca[layer].ravel()), share, color=colour, label=f"layer {layer}")
    for limit in (0.15, 0.4):
        lines.axvline(limit, color="grey", linestyle=":", linewidth=1)
    lines.set(xlabel="contextual agreement", ylabel="share of chunks", xlim=(0, 1), ylim=(0, 1.01))
    lines.set_title("cumulative distribution by layer")
    lines.legend(fontsize="small", ncols=max(1, n_layer // 16))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
