"""The progress bar: on a terminal only, and only for work that takes a moment."""

from __future__ import annotations

import io
import sys

import pytest

from fasa_py import progress
from fasa_py.progress import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("loading") as update:
        assert update is None


@pytest.mark.parametrize(("patience", "shown"), [(1000.0, False), (-1.0, True)])
def test_a_bar_appears_after_a_moment(monkeypatch: pytest.MonkeyPatch, patience: float, shown: bool) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    with progress_bar("loading x") as update:
        assert update is not None
        for fraction in (0.0, 0.5, 1.0):
            update(fraction)
    assert ("loading x" in terminal.getvalue()) is shown
