"""Random keys and values, and their split into training and evaluation."""

import zlib
from collections.abc import Callable
from random import Random
from typing import Literal

from .words import ADJECTIVES, NOUNS

Split = Literal["train", "eval"]


def is_eval_key(key: str) -> bool:
    """Whether a key belongs to the evaluation split (one in eight does)."""
    return zlib.crc32(key.encode()) % 8 == 0


def draw_key(split: Split, make: Callable[[], str]) -> str:
    """Call ``make`` until it returns a key of the split."""
    while True:
        key = make()
        if is_eval_key(key) == (split == "eval"):
            return key


def distinct_keys(split: Split, make: Callable[[], str], n: int) -> list[str]:
    """Up to ``n`` different keys of the split; fewer when 400 n draws do not give them."""
    keys: dict[str, None] = {}
    for _ in range(n * 400):
        keys.setdefault(draw_key(split, make))
        if len(keys) == n:
            break
    return list(keys)


def distinct_values(make: Callable[[], str], n: int) -> list[str]:
    """``n`` different values, in the order drawn."""
    values: dict[str, None] = {}
    while len(values) < n:
        values.setdefault(make())
    return list(values)


def digits(rng: Random, low: int = 5, high: int = 7) -> str:
    """A number of ``low`` to ``high`` digits that does not start with 0."""
    first = str(rng.randint(1, 9))
    return first + "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high) - 1))


def hex_key(rng: Random) -> str:
    """Six lower-case hexadecimal digits."""
    return "".join(rng.choice("0123456789abcdef") for _ in range(6))


def variable_name(rng: Random, length: int) -> str:
    """``length`` capital letters."""
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(length))


def nonsense_label(rng: Random) -> str:
    """A pronounceable label that is not a word, such as ``vix``."""
    syllables = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 2)))
    return syllables + rng.choice(["b", "k", "m", "nd", "rp", "sh", "t", "x", "zz"])


def adjective_noun(rng: Random) -> Callable[[], str]:
    """A source of keys such as ``copper-rabbit``."""
    return lambda: rng.choice(ADJECTIVES) + "-" + rng.choice(NOUNS)


def crowded_adjective_noun(rng: Random, n: int) -> Callable[[], str]:
    """As :func:`adjective_noun`, but in 40 % of cases from so few words that ``n`` keys overlap in many of them."""
    if rng.random() >= 0.4:
        return adjective_noun(rng)
    size = max(4, int(n**0.5 * 3.5) + 2)
    adjectives = rng.sample(ADJECTIVES, min(size, len(ADJECTIVES)))
    nouns = rng.sample(NOUNS, min(size, len(NOUNS)))
    return lambda: rng.choice(adjectives) + "-" + rng.choice(nouns)
