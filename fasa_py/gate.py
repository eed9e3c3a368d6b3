"""One caller at a time: the lock of a :class:`fasa_py.Llama`, which notices when a thread would wait for itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Call:
    """A call inside. ``driver``: the only thread that has driven it; None: it is gone, or there were several."""

    def __init__(self) -> None:
        # The thread itself: its number would be given to another one once it has ended.
        self._driver: weakref.ref[threading.Thread] | None = weakref.ref(threading.current_thread())
        self.suspended = False

    @property
    def driven_by_this_thread(self) -> bool:
        return self._driver is not None and self._driver() is threading.current_thread()

    def resume(self) -> None:
        self.suspended = False
        if not self.driven_by_this_thread:
            self._driver = None


class Gate:
    """Calls of several threads queue here.

    A streaming iterator stays inside until it is exhausted or closed. When the thread that alone has been driving the
    open stream asks to enter again, waiting would never end: that is a RuntimeError. A stream that several threads
    have advanced (a thread pool does that) can be finished by another one, so waiting is right.
    """

    def __init__(self) -> None:
        # Re-entrant: collecting garbage in here may end a forgotten stream.
        self._changed = threading.Condition(threading.RLock())
        self._call: _Call | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a call is inside."""
        return self._call is not None

    def require_open(self) -> None:
        """:raises RuntimeError: :meth:`close` was called"""
        if self._closed:
            raise RuntimeError("this Llama is closed")

    def _refuse_to_wait_for_oneself(self) -> None:
        if self._call is not None and self._call.driven_by_this_thread:
            raise RuntimeError(
                "this thread has not finished its previous call on this Llama: exhaust or close() the open stream first"
            )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the others, then be the one inside.

        :raises RuntimeError: closed, before or while waiting; or the call inside is this thread's
        """
        self.require_open()
        self._refuse_to_wait_for_oneself()
        call = _Call()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._call is None or self._closed)
                self.require_open()
                self._call = call
            yield
        finally:
            with self._changed:
                if self._call is call:
                    self._call = None
                    self._changed.notify_all()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The stream inside waits for its consumer, and may go on in another thread.

        :raises RuntimeError: closed in the meantime
        """
        call = self._call
        if call is None:
            raise RuntimeError("no call is inside")
        with self._changed:
            call.suspended = True
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                call.resume()
        self.require_open()

    def close(self, stop: Callable[[], None], free: Callable[[], None]) -> None:
        """Let nobody in any more; ``stop`` the call inside, and ``free`` when it has ended or waits for its consumer.

        :raises RuntimeError: the call inside is this thread's and has not ended (a callback of it asks)
        """
        with self._changed:
            if self._call is not None and not self._call.suspended:
                self._refuse_to_wait_for_oneself()
            self._closed = True
            self._changed.notify_all()
            stop()
            self._changed.wait_for(lambda: self._call is None or self._call.suspended)
            free()  # in here, so that a suspended stream cannot go on meanwhile
