"""Arguments that several subcommands share, and what they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..generation import Completion, Sparsity
from ..llama import Llama
from ..method import supported_methods
from ..progress import progress_bar


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    group = parser.add_argument_group("model")
    add_model_file_argument(group)
    group.add_argument("--hf", metavar="OWNER/NAME", help="repository of the Hugging Face hub to take the model from")
    group.add_argument("--hf-file", metavar="GLOB", default="*", help="which of its GGUF files, e.g. '*q4_k_m.gguf'")
    group.add_argument(
        "-c", "--ctx", "--n-ctx", type=int, metavar="N", help="context in tokens (default: trained, or what fits)"
    )
    group.add_argument("--batch", type=int, metavar="N", default=512, help="prompt tokens processed at once")
    group.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all usable cores)")
    add_device_arguments(group)
    group.add_argument("--chat-template", metavar="NAME|SOURCE", help="instead of the file's default template")


def add_device_arguments(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Where the model runs, and how much of that it may take."""
    group.add_argument("--device", default="auto", help="auto (a GPU if one can be used), cpu, cuda or cuda:N")
    group.add_argument("--vram", metavar="SIZE", help="GPU memory that may be taken in all, e.g. 8GiB (default: all)")


def add_model_file_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("-m", "--model", metavar="FILE", help="GGUF file (default: the embedded demo model)")


def _budget(value: str) -> int | float:
    """A count of tokens, or with a decimal point a share of them."""
    try:
        return int(value)
    except ValueError:
        return float(value)


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """How decode steps attend. The defaults are those of fasa_py.Method."""
    group = parser.add_argument_group("attention")
    group.add_argument("--method", metavar="NAME", help=f"auto, {', '.join(supported_methods())} (default: auto)")
    group.add_argument("--n-tip", type=_budget, metavar="N", help="dominant chunks of a head, or a share of them")
    group.add_argument("--n-fac", type=_budget, metavar="N", help="tokens attended to; 0.1: that share of the cached")
    group.add_argument("--n-sink", type=int, metavar="N", help="first tokens that are always among them")
    group.add_argument("--n-recent", type=int, metavar="N", help="last tokens that are always among them")
    group.add_argument("--dense-layers", type=int, metavar="N", help="leading layers that attend to all tokens")
    group.add_argument("--granularity", metavar="NAME", help="sets of a kv_head (default) or of each query head")
    group.add_argument("--criterion", metavar="NAME", help="of dominant chunks: ca or mass (default: the table's)")
    group.add_argument("--paper", action="store_true", help="start from the settings of the FASA paper")
    group.add_argument("--kv", default="auto", metavar="PLACE", help="KV cache: device, or split between it and host")
    group.add_argument("--kv-cache-rows", type=int, metavar="N", help="rows of a split cache kept on the GPU; 0: none")
    group.add_argument("--k-dom", default="f16", metavar="TYPE", help="dominant keys: f16 (default), int8 or q4")


METHOD_ARGUMENTS = (
    "method",
    "n_tip",
    "n_fac",
    "n_sink",
    "n_recent",
    "dense_layers",
    "granularity",
    "criterion",
    "paper",
    "kv",
    "kv_cache_rows",
    "k_dom",
)


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of Llama that say how to attend, those that were given."""
    return {name: getattr(args, name) for name in METHOD_ARGUMENTS if getattr(args, name) is not None}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How tokens are drawn, and when to stop. The defaults are those of Llama.generate."""
    group = parser.add_argument_group("generation")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help="-1: until the context is full")
    group.add_argument("--temperature", "--temp", type=float, metavar="X", help="0: always the most likely token")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--top-p", type=float, metavar="X")
    group.add_argument("--min-p", type=float, metavar="X")
    group.add_argument("--repeat-penalty", type=float, metavar="X")
    group.add_argument("--presence-penalty", type=float, metavar="X")
    group.add_argument("--frequency-penalty", type=float, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the text before this; may be repeated")


_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
)  # fmt: skip


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of generate that were given on the command line."""
    options = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if args.max_tokens is not None:
        options["max_tokens"] = None if args.max_tokens == -1 else args.max_tokens
    return options


def load_model(args: argparse.Namespace, **options: Any) -> Llama:
    """The model that the arguments name; options: further ones of Llama."""
    options |= {
        "n_ctx": args.ctx,
        "n_batch": args.batch,
        "n_threads": args.threads,
        "device": args.device,
        "vram": args.vram,
        "chat_template": args.chat_template,
        "verbose": args.verbose,
    }
    if args.hf and args.model:
        raise ValueError("give --model or --hf, not both")
    return Llama.from_pretrained(args.hf, args.hf_file, **options) if args.hf else Llama(args.model, **options)


def read_text(argument: str | None, file: str | None) -> str:
    """The text given as an argument, in a file, or on stdin (no argument, or ``-``)."""
    if argument is not None and file is not None:
        raise ValueError("give the text as an argument or with --file, not both")
    if file is not None:
        return _utf8(Path(file).read_bytes(), file)
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        raise ValueError("no text: give it as an argument, with --file, or on stdin")
    return _utf8(sys.stdin.buffer.read(), "stdin")


def _utf8(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    return text.replace("\r\n", "\n")


def write_answer(llm: Llama, prompt: Any, args: argparse.Namespace) -> Iterator[str]:
    """Generate; each piece goes to stdout, then to the caller. With --verbose, speed and effort go to stderr."""
    with progress_bar("reading the prompt") as progress:
        stream = llm.generate(prompt, stream=True, progress=progress, **sampling_options(args))
        first = next(stream, "")
    with stream:
        for piece in chain([first], stream):
            sys.stdout.write(piece)
            sys.stdout.flush()
            yield piece
    if args.verbose and stream.completion is not None:
        print(f"\n{speed(stream.completion)}\n{attention(llm, stream.completion.sparsity)}", file=sys.stderr)


def speed(completion: Completion) -> str:
    """Counts and tokens per second of a run."""
    timings = completion.timings
    return (
        f"prompt: {timings.prefill_tokens} tokens at {timings.prefill_tokens_per_s:.1f} tok/s "
        f"({timings.reused_tokens} reused); answer: {len(completion.tokens)} tokens at "
        f"{timings.decode_tokens_per_s:.1f} tok/s; seed {completion.seed}; ended by {completion.finish_reason}"
    )


def attention(llm: Llama, sparsity: Sparsity) -> str:
    """The method, and what the decode steps of a run read of the KV cache."""
    text = (
        f"attention: {llm.method}; a token: {sparsity.layers_sparse_per_step:.0f} of {llm.info.n_layer} layers sparse, "
        f"{size(sparsity.kv_bytes_per_step)} of KV cache read"
    )
    if sparsity.pcie_bytes:
        text += f", {size(sparsity.pcie_bytes_per_step)} over the bus; {sparsity.hit_rate:.0%} of rows were on the GPU"
    return text


def console() -> Console:
    """For tables on stdout; wide when it is not a terminal, so that nothing is cut."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def table(title: str, rows: Iterable[tuple[object, ...]], header: tuple[str, ...] = ()) -> Table:
    """A table of plain cells. Numbers are put to the right."""
    made = Table(title=Text(title), title_justify="left", show_header=bool(header), header_style="bold")
    rows = [tuple(row) for row in rows]
    n_columns = max((len(row) for row in rows), default=len(header))
    for i in range(n_columns):
        numbers = all(isinstance(row[i], int) for row in rows)
        made.add_column(header[i] if header else "", justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell))) for cell in row))
    return made


def printable(text: str, limit: int = 200) -> str:
    """Text from a file, harmless on a terminal: control characters escaped, not longer than the limit."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(n_bytes: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
