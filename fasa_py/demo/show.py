"""The demo on a terminal: calibrate the model, then ask about the text, with full attention and FASA side by side."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..calibration import calibrate
from ..generation import Completion
from ..llama import Llama
from ..method import Method
from ..progress import progress_bar
from . import INTRODUCTION, QUESTIONS, Question, model_path, text

_CALIBRATION_STEPS = 16
_MAX_ANSWER = 160  # tokens
_MIB = 2**20
_METHODS = (("full attention", Method("full")), ("FASA", Method("fasa")))


class Answers(NamedTuple):
    """To one question, in the order of _METHODS."""

    question: Question
    completions: list[Completion]

    @property
    def right(self) -> list[bool]:
        return [completion.text.strip() == self.question.answer for completion in self.completions]


def show(console: Console | None = None) -> bool:
    """Calibrate, ask all questions about the text; returns whether every answer of every method is right.

    On a terminal there is colour, and a bar while the text is read; in a pipe the same words come plain.
    """
    console = console or Console(highlight=False)
    console.print("fasa_py demo", style="bold")
    with tempfile.TemporaryDirectory() as directory:
        calibrated = _calibrate(console, Path(directory))
        with Llama(calibrated) as llm:
            document = text()
            _introduce(console, llm, document)
            answers = _converse(console, llm, document)
            _sum_up(console, llm, answers)
    n_right, n = sum(sum(a.right) for a in answers), len(answers) * len(_METHODS)
    console.print(f"\n{n_right} of {n} answers right", style="bold green" if n_right == n else "bold red")
    return n_right == n


def _calibrate(console: Console, directory: Path) -> Path:
    """A copy of the model's file with a table made here and now, by a short calibration."""
    calibrated = directory / model_path().name
    started = time.perf_counter()
    with progress_bar("calibrating") as progress:
        table = calibrate(model_path(), n_steps=_CALIBRATION_STEPS, progress=progress)
    table.save(model_path(), calibrated)
    seconds = time.perf_counter() - started
    console.print(
        f"table   calibrated in {seconds:.0f} s, on {table.n_steps} tokens that the model wrote about another text"
    )
    console.print(
        f"        {table.share_above(0.4):.1%} of its chunks tell by themselves where their head looks (CA > 0.4)"
    )
    return calibrated


def _introduce(console: Console, llm: Llama, document: str) -> None:
    info = llm.info
    n_tokens = len(llm.tokenize(document, add_bos=False))
    console.print(f"model   {model_path().name}, {info.n_params / 1e6:.0f} M parameters, on {info.device}")
    console.print(f"text    {n_tokens:,} tokens: two chapters of a novel with facts hidden in them")
    console.print(
        f"FASA    ranks the tokens by {llm.method.n_tip} of {info.head_dim // 2} chunks of each key, "
        f"attends to {llm.method.n_fac}\n"
    )


def _converse(console: Console, llm: Llama, document: str) -> list[Answers]:
    """Ask the questions one after the other in one conversation: the text is read once."""
    messages: list[dict[str, str]] = []
    answers = []
    for question in QUESTIONS:
        asked = question.text if messages else f"{INTRODUCTION}\n\n{document}\n\n{question.text}"
        messages.append({"role": "user", "content": asked})
        answers.append(_ask(console, llm, messages, question))
        messages.append({"role": "assistant", "content": answers[-1].completions[0].text})
    return answers


def _ask(console: Console, llm: Llama, messages: Sequence[dict[str, str]], question: Question) -> Answers:
    """Read what is new, then stream the answers to the last message side by side."""
    console.print(question.text, style="bold cyan")
    with progress_bar("reading the text") as progress:
        read = llm.chat(messages, max_tokens=0, progress=progress)
    console.print(_effort(read), style="dim")
    answers = Answers(question, [])
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for _, method in _METHODS:
            llm.set_method(method)
            shown = ""
            with llm.chat(messages, stream=True, temperature=0, max_tokens=_MAX_ANSWER) as stream:
                for piece in stream:
                    shown += piece
                    live.update(_side_by_side(answers, shown), refresh=True)
            assert stream.completion is not None  # the stream has ended
            answers.completions.append(stream.completion)
    console.print(_side_by_side(answers))
    console.print()
    if not all(answers.right):
        console.print(f"expected: {question.answer}", style="bold red")
    return answers


def _effort(completion: Completion) -> str:
    """What of the prompt was processed, and how fast."""
    timings = completion.timings
    if timings.reused_tokens == 0:
        return (
            f"{timings.prefill_tokens:,} tokens read in {timings.prefill_s:.1f} s, "
            f"{timings.prefill_tokens_per_s:,.0f} tokens/s"
        )
    return (
        f"{timings.reused_tokens:,} tokens reused, only {timings.prefill_tokens} new tokens processed "
        f"in {timings.prefill_s * 1e3:.0f} ms"
    )


def _side_by_side(answers: Answers, growing: str | None = None) -> Table:
    """A column for each method: its answer, whether that is right, and what it took. growing: the answer that comes."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold")
    table.add_column("", width=13)
    for name, _ in _METHODS:
        table.add_column(name, width=29)
    finished = answers.completions
    cells = [Text(completion.text.strip()) for completion in finished]
    table.add_row("answer", *cells, *([Text(growing)] if growing is not None else []))
    table.add_row("", *(_verdict(right) for right in answers.right))
    table.add_row("speed", *(f"{c.timings.decode_tokens_per_s:,.0f} tokens/s" for c in finished), style="dim")
    table.add_row("KV cache read", *(f"{_read(c):.1f} MiB a token" for c in finished), style="dim")
    return table


def _verdict(right: bool) -> Text:
    return Text("✓ right", style="bold green") if right else Text("✗ wrong", style="bold red")


def _read(completion: Completion) -> float:
    """MiB of the KV cache that a decode step read."""
    return completion.sparsity.kv_bytes_per_step / _MIB


def _peak_memory() -> float:
    """MiB that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _sum_up(console: Console, llm: Llama, answers: Sequence[Answers]) -> None:
    """Speed and KV bytes over all answers, the memory taken."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold")
    for name in ("all answers", "tokens/s", "KV cache read a token", "sparse layers", "right"):
        table.add_column(name, justify="left" if name == "all answers" else "right")
    for i, (name, _) in enumerate(_METHODS):
        runs = [a.completions[i] for a in answers]
        n_steps = sum(c.sparsity.n_steps for c in runs)
        seconds = sum(c.timings.decode_s for c in runs)
        read = sum(c.sparsity.key_bytes + c.sparsity.value_bytes for c in runs) / n_steps / _MIB
        layers = sum(c.sparsity.layers_sparse for c in runs) / n_steps
        n_right = sum(a.right[i] for a in answers)
        table.add_row(
            name, f"{n_steps / seconds:,.0f}", f"{read:.1f} MiB", f"{layers:.0f} of {llm.info.n_layer}",
            f"{n_right} of {len(answers)}",
        )  # fmt: skip
    console.print(table)
    weights, cache = llm.plan.weights_bytes / _MIB, llm.plan.kv_bytes / _MIB
    dominant = llm.plan.kv_dom_bytes / _MIB
    console.print(f"\nmemory  {weights:.0f} MiB weights")
    console.print(f"        {cache:.0f} MiB KV cache of {llm.n_ctx:,} tokens, {dominant:.0f} MiB of it dominant keys")
    console.print(f"        {_peak_memory():.0f} MiB at the peak, Python included")
