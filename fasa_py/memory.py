"""Amounts of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1} | {
    prefix + end: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def memory_size(value: int | str | None, name: str = "vram") -> int:
    """Bytes: a whole number, or a text like ``8GiB``, ``7.5 GiB`` (1024³), ``8G`` (the same) or ``8GB`` (1000³).

    :param name: of the setting, for errors
    :returns: 0 for None
    :raises ValueError: anything else, or less than one byte
    """
    if value is None:
        return 0
    amount: float | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2] in _UNITS:
            amount = float(match[1]) * _UNITS[match[2]]
    if amount is None or not 1 <= amount < 2**63:
        raise ValueError(f'{name} must be a number of bytes or a text like "8GiB", not {value!r}')
    return int(amount)
