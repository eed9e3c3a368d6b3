"""Stop strings in a stream of text: an Aho-Corasick automaton, so that a long list costs no more than a short one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StopMatcher:
    """Immutable automaton over the characters of all stop strings.

    State 0 is the root. ``depth[state]`` is the length of the longest suffix of the text read so far that could still
    become a stop string: exactly what a stream has to hold back.

    :raises ValueError: an empty stop string
    :raises TypeError: something other than strings
    """

    def __init__(self, stops: str | Iterable[str] | None) -> None:
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops or ())
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._matched = [0]  # length of the longest stop string that ends in this state; 0: none
        self.depth = [0]
        for stop in self.stops:
            if not isinstance(stop, str):
                raise TypeError(f"stop must be a string or a list of strings, not {stop!r}")
            if not stop:
                raise ValueError("a stop string cannot be empty")
            self._insert(stop)
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._fail.append(0)
                self._matched.append(0)
                self.depth.append(self.depth[state] + 1)
            state = following
        self._matched[state] = len(stop)

    def _link(self) -> None:
        """Breadth first: where to go on when a character does not fit, the longest proper suffix that is a state."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            self._matched[state] = self._matched[state] or self._matched[self._fail[state]]
            for character, following in self._next[state].items():
                self._fail[following] = self.step(self._fail[state], character)[0]
                queue.append(following)

    def step(self, state: int, character: str) -> tuple[int, int]:
        """The state after a character, and the length of the longest stop string that ends there (0: none)."""
        while True:
            following = self._next[state].get(character)
            if following is not None:
                return following, self._matched[following]
            if state == 0:
                return 0, 0
            state = self._fail[state]


class StopFilter:
    """Passes text on until a stop string is complete, never a part of one.

    ``found`` is the stop string that ended the text, or None.
    """

    def __init__(self, matcher: StopMatcher) -> None:
        self._matcher = matcher
        self._state = 0
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that can be shown; nothing after a stop string."""
        if self.found is not None:
            return ""
        if not self._matcher.stops:
            return text
        held = self._held + text
        for i, character in enumerate(text):
            self._state, matched = self._matcher.step(self._state, character)
            if matched:
                end = len(held) - len(text) + i + 1
                self.found = held[end - matched : end]
                self._held = ""
                return held[: end - matched]
        keep = self._matcher.depth[self._state]
        shown = len(held) - keep
        self._held = held[shown:]
        return held[:shown]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held, self._state = self._held, "", 0
        return held
