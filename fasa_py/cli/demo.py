"""calibrate the embedded model; have it answer about a long text with full attention and with FASA"""

from __future__ import annotations

import argparse

from .. import demo


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(_args: argparse.Namespace) -> int:
    return demo.main()
