"""continue a text"""

from __future__ import annotations

import argparse

from .common import (
    add_method_arguments,
    add_model_arguments,
    add_sampling_arguments,
    load_model,
    method_options,
    read_text,
    write_answer,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the text; '-' or nothing: read from stdin")
    parser.add_argument("-f", "--file", help="read the text from this file")
    parser.add_argument("--chat", action="store_true", help="ask it as a user's message, through the chat template")
    add_model_arguments(parser)
    add_method_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    text = read_text(args.prompt, args.file)
    with load_model(args, **method_options(args)) as llm:
        for _ in write_answer(llm, [{"role": "user", "content": text}] if args.chat else text, args):
            pass
    print()
    return 0
