"""talk with a model; it remembers the conversation

Ctrl-C stops an answer, twice leaves. When stdin is not a terminal, each line is a message.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress

from ..errors import ContextFullError
from ..llama import Llama
from .common import (
    add_method_arguments,
    add_model_arguments,
    add_sampling_arguments,
    load_model,
    method_options,
    write_answer,
)

_HELP = "/reset forgets the conversation, /exit leaves; Ctrl-C stops an answer, twice leaves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="a system message to start with")
    add_model_arguments(parser)
    add_method_arguments(parser)
    add_sampling_arguments(parser)


class _Conversation:
    """The history, and the answers to it."""

    def __init__(self, llm: Llama, args: argparse.Namespace) -> None:
        self._llm = llm
        self._args = args
        self._start = [{"role": "system", "content": args.system}] if args.system else []
        self._messages = list(self._start)

    def reset(self) -> None:
        self._messages = list(self._start)

    def answer(self, text: str) -> None:
        """Write the answer to a message. What an interrupt left of it stays in the history."""
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in write_answer(self._llm, self._messages, self._args):
                pieces.append(piece)
        except ContextFullError as error:
            self._messages.pop()
            print(f"fasa: {error}; /reset starts anew", file=sys.stderr)
            return
        finally:
            if pieces:
                self._messages.append({"role": "assistant", "content": "".join(pieces)})
            print(flush=True)


def _lines() -> Iterator[str | None]:
    """The user's messages; None for a Ctrl-C."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing for input()
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            yield None


def run(args: argparse.Namespace) -> int:
    if args.max_tokens is None:
        args.max_tokens = -1  # the model ends its answers
    interrupted = False
    with load_model(args, **method_options(args)) as llm:
        conversation = _Conversation(llm, args)
        if sys.stdin.isatty():
            print(f"attention: {llm.method}\n{_HELP}", file=sys.stderr)
        for line in _lines():
            if line is None:
                if interrupted:
                    return 130
                interrupted = True
                print(f"\n{_HELP}", file=sys.stderr)
            elif line.strip() == "/exit":
                break
            elif line.strip() == "/reset":
                conversation.reset()
            elif line.strip():
                interrupted = False
                try:
                    conversation.answer(line)
                except KeyboardInterrupt:
                    interrupted = True
                    if not sys.stdin.isatty():
                        raise
    return 0
