"""The ``fasa`` command. Text that was asked for goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 an error (one line on stderr; ``--debug`` for the traceback), 130 Ctrl-C, 141 broken pipe.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from . import chat, demo, doctor, eval, generate, info, perplexity

_COMMANDS = (generate, chat, info, perplexity, eval, doctor, demo)


class _Parser(argparse.ArgumentParser):
    """Usage errors are one line and exit code 1, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a module."""
    parser = _Parser(prog="fasa", description="Run GGUF models on this machine, with long contexts.")
    parser.add_argument("--version", action="version", version=f"fasa {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is loaded, and the speed")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in _COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1]
        summary = (module.__doc__ or "").strip().splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary, parents=[common])
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(argv)
    _log_to_stderr(args.verbose)
    warnings.showwarning = _show_warning
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is still buffered must not fail again when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            raise
        print(f"fasa: {_one_line(error)}", file=sys.stderr)
        return 1


def _log_to_stderr(verbose: bool) -> None:
    """What the package logs; not what its dependencies do."""
    logger = logging.getLogger("fasa_py")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fasa: %(message)s"))
    logger.handlers = [handler]
    # It tells of every attempt to reach the hub; the error at the end says it once.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def _one_line(error: Exception) -> str:
    """What is wrong; the kind of error only where the text alone says too little."""
    text = " ".join(str(error).split())
    return text if len(text) > 20 or " " in text else f"{type(error).__name__}: {text}"


def _show_warning(message: Warning | str, *_where: Any, **_options: Any) -> None:
    print(f"fasa: warning: {message}", file=sys.stderr)
