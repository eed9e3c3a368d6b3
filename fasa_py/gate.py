"""One caller at a time: the lock of a :class:`fasa_py.Llama`, which notices when a thread would wait for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Calls of several threads queue here.

    A streaming iterator stays inside until it is exhausted or closed. When the thread that alone has been driving the
    open stream asks to enter again, waiting would never end: that is a RuntimeError. A stream that several threads
    have advanced (a thread pool does that) can be finished by another one, so waiting is right.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None  # the only one that has driven the call inside; None: nobody, or several
        self._suspended = False

    @property
    def busy(self) -> bool:
        """Whether a call is inside."""
        return self._lock.locked()

    @property
    def _held_by_this_thread(self) -> bool:
        return self._thread == threading.get_ident()

    @property
    def suspended_by_this_thread(self) -> bool:
        """Whether the call inside is a stream that waits for its consumer, who is this thread."""
        return self._suspended and self._held_by_this_thread

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the others, then be the one inside."""
        if self._held_by_this_thread:
            raise RuntimeError(
                "this thread has not finished its previous call on this Llama: exhaust or close() the open stream first"
            )
        with self._lock:
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The stream inside waits for its consumer, and may go on in another thread."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False
            if not self._held_by_this_thread:
                self._thread = None
