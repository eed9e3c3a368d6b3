"""Help for tests of generation."""

from __future__ import annotations

import math
from typing import Any

from fasa_py import Completion, Llama


def forced(*tokens: int) -> dict[int, float]:
    """A bias under which only these tokens of the tiny model are drawn."""
    return {token: -math.inf for token in range(270) if token not in tokens}


def complete(llm: Llama, prompt: Any, **options: Any) -> Completion:
    return llm.generate(prompt, stream=False, **options)
