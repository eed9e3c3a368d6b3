"""A picture of what bench/gpu_models.py measured: tokens/s of decoding by context, a line for each method.

    python bench/plot_decode.py build/gpu_models.json docs/gpu_decode.svg [--model llama-3.1-8b:Q4_K_M]

Depth 0 stands at the left end of the logarithmic axis. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from gpu_models import PEER_MODEL
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

LINES = {
    "dense": ("full attention", "tab:gray", "-"),
    "fasa": ("FASA-C, all on the GPU", "tab:blue", "-"),
    "fasa-int8": ("FASA-C, dominant keys of 8 bits", "tab:blue", "--"),
    "fasa-q4": ("FASA-C, 4 bits", "tab:blue", ":"),
    "fasa-m": ("FASA-M, rows in host memory, none cached", "tab:green", "-"),
    "fasa-m-int8": ("FASA-M, dominant keys of 8 bits", "tab:green", "--"),
    "fasa-m-q4": ("FASA-M, 4 bits", "tab:green", ":"),
    "fasa-m-cache": ("FASA-M with a cache of rows", "tab:green", "-."),
}
LEFT = 512  # where depth 0 stands


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes the picture of one model's report as SVG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    decoded = [row for row in report["results"] if row["kind"] == "decode"]
    depths = sorted({row["depth"] for row in decoded})
    for method, (label, color, style) in LINES.items():
        points = sorted((row["depth"], row["tokens_per_s"]) for row in decoded if row["method"] == method)
        if points:
            x, y = [max(depth, LEFT) for depth, _ in points], [speed for _, speed in points]
            axes.plot(x, y, style, color=color, marker="o", markersize=3, label=label)
    if peer := report["peer"].get("decode"):
        points = sorted((int(depth), speed) for depth, speed in peer.items())
        x, y = [max(depth, LEFT) for depth, _ in points], [speed for _, speed in points]
        axes.plot(x, y, "-", color="tab:red", marker="s", markersize=3, label="llama.cpp")
    axes.set_xscale("log", base=2)
    axes.set_xticks([max(depth, LEFT) for depth in depths], [f"{depth // 1024}k" if depth else "0" for depth in depths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("tokens/s decoded")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", default=PEER_MODEL)
    arguments = parser.parse_args()
    reports = [r for r in json.loads(arguments.json.read_text())["models"] if r["model"] == arguments.model]
    if not reports:
        parser.error(f"{arguments.json} has no {arguments.model}")
    matplotlib.rcParams.update({"svg.hashsalt": "fasa", "svg.fonttype": "none"})  # the same bytes every time, and few
    draw(reports[0], arguments.picture)


if __name__ == "__main__":
    main()
