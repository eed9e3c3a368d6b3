"""Parity with llama.cpp: its logits for tiny models and the demo model, from ``shared/golden`` beside the repository.

A case is a prompt and what followed greedily there. We walk along those tokens, whatever we would have chosen, and
compare at every step. The error of a step: RMS difference over the listed logits (the ten highest), divided by the RMS
of all the step's logits. llama.cpp quantises activations to 8 bits too, so with quantised weights it is itself 2 to 6 %
away from exact arithmetic: the limits there say "as close as it is", not "as close as one can be".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from devices import each_device
from engine import Engine
from gguf import GGUFReader

SHARED = Path(__file__).resolve().parents[3] / "shared"


def model_path(golden: Path) -> Path:
    beside = golden.with_suffix(".gguf")
    return beside if beside.exists() else SHARED / "models" / beside.name


GOLDEN = [path for path in sorted((SHARED / "golden").glob("*.jsonl")) if model_path(path).exists()]
if not GOLDEN:
    pytest.skip(f"no reference logits, or no models of them, in {SHARED}", allow_module_level=True)

LIMITS = {"F32": (5e-3, 5e-3), "F16": (5e-3, 5e-3), "BF16": (1e-2, 2e-2)}  # weight type -> (median, any step)
QUANTISED_LIMITS = (4e-2, 1e-1)

each_file = pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)


def limits_of(path: Path) -> tuple[float, float]:
    types = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}
    return LIMITS.get(types["blk.0.attn_q.weight"], QUANTISED_LIMITS)


def cases(golden: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in golden.read_text(encoding="ascii").splitlines()]


def compare(golden: Path, cases: list[dict[str, Any]], logits_along: Callable[[list[int], int], np.ndarray]) -> None:
    """``logits_along(tokens, n)`` gives the logits of the last n tokens, (n, n_vocab)."""
    limit_median, limit_step = limits_of(model_path(golden))
    errors = []
    for case in cases:
        steps, n_prompt = case["steps"], len(case["tokens"])
        ours = logits_along(case["tokens"] + case["greedy"][: len(steps) - 1], len(steps))
        for i, (step, logits) in enumerate(zip(steps, ours, strict=True)):
            tokens, theirs = [t for t, _ in step["top"]], np.array([value for _, value in step["top"]])
            errors.append(float(np.sqrt(np.mean((logits[tokens] - theirs) ** 2))) / step["rms"])
            at = f"{golden.stem}: prompt of {n_prompt} tokens, step {i}"
            assert errors[-1] <= limit_step, f"{at}: error {errors[-1]:.2e}"
            if theirs[0] - theirs[1] > 2 * limit_step * step["rms"]:
                assert int(logits.argmax()) == tokens[0], f"{at}: another top token"
    assert np.median(errors) <= limit_median, f"{golden.stem}: median error {np.median(errors):.2e}"
    print(
        f"\n{golden.stem}: {len(errors)} steps, error median {np.median(errors):.1e}, largest {max(errors):.1e}", end=""
    )


@each_device
@each_file
def test_engine_agrees_with_llama_cpp(golden: Path) -> None:
    every = cases(golden)
    n_ctx = max(len(case["tokens"]) + len(case["steps"]) for case in every)
    with Engine(model_path(golden), n_ctx=n_ctx) as engine:

        def logits_along(tokens: list[int], n: int) -> np.ndarray:
            engine.truncate(0)
            first = engine.decode(tokens[: len(tokens) - n + 1])
            return np.stack([first, *(engine.decode([token]) for token in tokens[len(tokens) - n + 1 :])])

        compare(golden, every, logits_along)


@each_file
def test_reference_agrees_with_llama_cpp(golden: Path) -> None:
    """The float64 reference, which defines what the engine is tested against, means the same network as llama.cpp."""
    model = reference.load(model_path(golden))
    short = [case for case in cases(golden) if len(case["tokens"]) <= 1500]  # full n x n scores: keep n small
    assert short
    compare(golden, short, lambda tokens, n: reference.forward(model, tokens, n_last=n))
