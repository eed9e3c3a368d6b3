"""have the embedded model answer questions about a long text"""

from __future__ import annotations

import argparse

from .. import demo


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(_args: argparse.Namespace) -> int:
    return demo.main()
