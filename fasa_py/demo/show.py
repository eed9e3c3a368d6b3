"""The demo on a terminal: load the model, ask about the text, stream the answers, check them, print the speed."""

from __future__ import annotations

import itertools
import resource
import sys
import time

from rich.console import Console

from ..generation import Completion
from ..llama import Llama
from ..progress import progress_bar
from . import INTRODUCTION, QUESTIONS, Question, model_path, text

_MAX_ANSWER = 160  # tokens
_MIB = 2**20


def show(console: Console | None = None) -> bool:
    """Ask all questions about the text; returns whether every answer is right.

    On a terminal there is colour, and a bar while the text is read; in a pipe the same words come plain.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    started = time.perf_counter()
    llm = Llama()
    load_s = time.perf_counter() - started
    with llm:
        document = text()
        _introduce(console, llm, document)
        completions = _converse(console, llm, document)
        _sum_up(console, llm, completions, load_s)
    n_right = sum(_is_right(*pair) for pair in zip(completions, QUESTIONS, strict=True))
    all_right = n_right == len(QUESTIONS)
    console.print(f"\n{n_right} of {len(QUESTIONS)} answers right", style="bold green" if all_right else "bold red")
    return all_right


def _introduce(console: Console, llm: Llama, document: str) -> None:
    info = llm.info
    n_tokens = len(llm.tokenize(document, add_bos=False))
    console.print("fasa_py demo", style="bold")
    console.print(f"model   {model_path().name}, {info.n_params / 1e6:.0f} M parameters, on {info.device}")
    console.print(f"text    {n_tokens:,} tokens: two chapters of a novel, with facts hidden between the sentences")


def _converse(console: Console, llm: Llama, document: str) -> list[Completion]:
    """Ask the questions one after the other in one conversation: the text is read once."""
    messages: list[dict[str, str]] = []
    completions = []
    for question in QUESTIONS:
        asked = question.text if messages else f"{INTRODUCTION}\n\n{document}\n\n{question.text}"
        messages.append({"role": "user", "content": asked})
        completions.append(_ask(console, llm, messages, question))
        messages.append({"role": "assistant", "content": completions[-1].text})
    return completions


def _ask(console: Console, llm: Llama, messages: list[dict[str, str]], question: Question) -> Completion:
    """Stream the answer to the last message, then say whether it is right and what it took."""
    console.print(f"\n{question.text}", style="bold cyan")
    with progress_bar("reading the text") as progress:
        stream = llm.chat(messages, stream=True, temperature=0, max_tokens=_MAX_ANSWER, progress=progress)
        first = next(stream, "")  # comes when the whole prompt has been read
    with stream:
        for piece in itertools.chain([first], stream):
            console.print(piece, end="", markup=False)
    completion = stream.completion
    assert completion is not None  # the stream has ended
    right = _is_right(completion, question)
    console.print("  [bold green]✓ right[/]" if right else f"  [bold red]✗ wrong[/], expected: {question.answer}")
    console.print(_effort(completion), style="dim")
    return completion


def _is_right(completion: Completion, question: Question) -> bool:
    return completion.text.strip() == question.answer


def _effort(completion: Completion) -> str:
    """What of the prompt was processed, and how fast."""
    timings = completion.timings
    if timings.reused_tokens == 0:
        return f"{timings.prefill_tokens:,} tokens read in {timings.prefill_s:.1f} s"
    return (
        f"{timings.reused_tokens:,} tokens reused, only {timings.prefill_tokens} new tokens processed "
        f"in {timings.prefill_s * 1e3:.0f} ms"
    )


def _peak_memory() -> float:
    """MiB that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _sum_up(console: Console, llm: Llama, completions: list[Completion], load_s: float) -> None:
    reading = completions[0].timings
    n_decoded = sum(c.timings.decode_tokens for c in completions)
    decode_s = sum(c.timings.decode_s for c in completions)
    weights, cache = llm.plan.weights_bytes / _MIB, llm.plan.kv_bytes / _MIB
    console.print(f"\nload     {load_s * 1e3:.0f} ms")
    console.print(f"prefill  {reading.prefill_tokens_per_s:,.0f} tokens/s over {reading.prefill_tokens:,} tokens")
    console.print(f"decode   {n_decoded / decode_s:,.0f} tokens/s, each after those {reading.prefill_tokens:,} tokens")
    console.print(f"memory   {weights:.0f} MiB weights, {cache:.0f} MiB KV cache of {llm.n_ctx:,} tokens")
    console.print(f"         {_peak_memory():.0f} MiB at the peak, Python included")
