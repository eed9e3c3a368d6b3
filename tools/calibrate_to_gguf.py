"""Calibrate a GGUF model for FASA, and write a copy of its file that carries the table in its metadata.

    python tools/calibrate_to_gguf.py MODEL.gguf -o OUT.gguf

Tensor data and all other metadata stay byte for byte: the copy loads in llama.cpp too. Needs the installed package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import fasa_py
from fasa_py.calibration import CalibrationTable, calibrate
from fasa_py.gguf_writer import check_copy

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.percentage:3.0f} %"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="calibrate_to_gguf.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.gguf", type=Path)
    parser.add_argument("-o", "--output", metavar="OUT.gguf", type=Path, required=True)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="FILE", type=Path, help="a text to continue, instead of the package's own")
    text.add_argument(
        "--prompts", metavar="FILE", type=Path,
        help="one sample a line, as JSON: a text, a list of token ids, a list of chat messages, or an object with "
        '"prompt" or "messages"',
    )  # fmt: skip
    parser.add_argument("--k", type=int, default=256, help="best positions that are compared (default: 256)")
    parser.add_argument("--criterion", choices=("ca", "mass"), default="mass", help="of dominant chunks")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="decode steps of a sample (default: 64)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="of the text, not with --prompts (default: 1; 4 of the package's own)"
    )
    parser.add_argument("--n-tip", type=int, metavar="N", help="dominant chunks to recommend (default: a quarter)")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all usable cores)")
    parser.add_argument("--device", default="auto", help="what reads and writes: auto, cpu, cuda or cuda:N")
    parser.add_argument("--force", action="store_true", help="replace OUT.gguf if it exists")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="agreement by head and layer as an image")
    parser.add_argument("--report", action="store_true", help="sparsity, overlap of samples, accuracy of prediction")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def read_prompts(path: Path) -> list[Any]:
    """The samples of a JSON-lines file. :raises ValueError: a line is no sample; says which"""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error.msg}") from None
        if isinstance(value, dict):
            value = value.get("prompt", value.get("messages"))
        if not isinstance(value, (str, list)) or not value:
            raise ValueError(f"{path}, line {number}: neither a text nor a list, nor an object with prompt or messages")
        prompts.append(value)
    return prompts


@contextmanager
def bar(title: str) -> Iterator[Any]:
    """A function that shows the fraction done, on stderr."""
    with Progress(*_COLUMNS, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


def run(args: argparse.Namespace) -> None:
    """Calibrate and write."""
    if args.output.exists() and not args.force:
        raise FileExistsError(f"{args.output} exists: --force replaces it")
    if args.prompts and args.samples is not None:
        raise ValueError("--samples divides a text; with --prompts, each line is one sample: leave it out")
    given: dict[str, Any] = {}
    if args.text:
        given = {"text": args.text.read_text(encoding="utf-8"), "source": args.text.name}
    elif args.prompts:
        given = {"prompts": read_prompts(args.prompts), "source": args.prompts.name}
    check_copy(args.model, args.output, args.force)
    with bar("calibrating") as progress:
        table: CalibrationTable = calibrate(
            args.model, k=args.k, criterion=args.criterion, n_steps=args.steps, n_samples=args.samples,
            n_tip=args.n_tip, n_threads=args.threads, device=args.device, diagnostics=args.report, progress=progress,
            **given,
        )  # fmt: skip
    with bar("writing") as progress:
        table.save(args.model, args.output, args.force, progress)
    print(f"{args.output}: {table.n_steps} decode steps, criterion {table.criterion}")
    if args.report:
        print(table.report())
    if args.plot:
        from fasa_py.plots import plot_table

        plot_table(table, args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error (one line on stderr), 130 Ctrl-C."""
    args = arguments().parse_args(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (fasa_py.FasaError, OSError, ValueError) as error:
        if args.debug:
            raise
        print(f"calibrate_to_gguf.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
