"""The stop filter against a plain search, over random texts cut at random places."""

from __future__ import annotations

import random

import pytest

from fasa_py.stop import StopFilter, StopMatcher


def run_filter(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """What the filter lets through, and the stop string it found."""
    filtered = StopFilter(StopMatcher(stops))
    shown = "".join(filtered.push(piece) for piece in pieces)
    return shown + filtered.flush(), filtered.found


def plain_search(stops: list[str], text: str) -> tuple[str, str | None]:
    """The text before the stop string that is complete first; of several that end there, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_equals_a_plain_search() -> None:
    rng = random.Random(1)
    n_found = 0
    for _ in range(3000):
        alphabet = "ab" if rng.random() < 0.5 else "abcé"
        stops = ["".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 5))]
        pieces = ["".join(rng.choices(alphabet, k=rng.randint(0, 4))) for _ in range(rng.randint(0, 12))]
        expected = plain_search(stops, "".join(pieces))
        assert run_filter(stops, pieces) == expected, (stops, pieces)
        n_found += expected[1] is not None
    assert 500 < n_found < 2900  # both outcomes occur


def test_never_shows_what_may_become_a_stop_string() -> None:
    filtered = StopFilter(StopMatcher(["<|end|>", "\n\nUser:"]))
    assert filtered.push("answer<|en") == "answer"
    assert filtered.push("ding> \n") == "<|ending> "
    assert filtered.push("\nUse") == ""
    assert filtered.push("r:more") == ""
    assert filtered.found == "\n\nUser:"
    assert filtered.push("ignored") == "" and filtered.flush() == ""


def test_a_long_list_and_a_long_stop_string() -> None:
    stops = [f"stop number {i};" for i in range(20_000)] + ["x" * 100_000]
    text = "a stop number 7 is not one, but stop number 19999; is"
    assert run_filter(stops, list(text)) == ("a stop number 7 is not one, but ", "stop number 19999;")


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(stops)


def test_something_other_than_text_is_refused() -> None:
    with pytest.raises(TypeError, match="stop must be"):
        StopMatcher([3])  # type: ignore[list-item]
