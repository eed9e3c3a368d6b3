"""A progress bar on stderr: only on a terminal, and only when the work takes longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_PATIENCE = 0.5  # seconds without a bar


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float], None] | None]:
    """A function to call with the fraction done (0 to 1), or None when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    started = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=1.0)
    with ExitStack() as shown:

        def update(fraction: float) -> None:
            if not bar.live.is_started and time.monotonic() - started > _PATIENCE:
                shown.enter_context(bar)
            bar.update(task, completed=fraction)

        yield update
