"""A GPU beside the CPU: the same positions selected, the same chunks found.

Each device has keys and queries of its own, a rounding apart. Selection from the same ones is compared by the native
tests (tests/native/select_lab.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import ON_GPU
from engine import Engine, Table
from tiny_models import TinyModel, write

from fasa_py import demo
from fasa_py._native import lib, text
from fasa_py.calibration import calibrate
from fasa_py.eval.subject import Subject
from fasa_py.eval.texts import load_texts

N_PROMPT, N_STEPS = 150, 12
TOKENS = [(7 * i * i + 3 * i) % 131 for i in range(N_PROMPT + N_STEPS)]
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in text(lib.fasa_supported_methods()).split(", ")},
    "fasa by ca, per head": {"method": "fasa", "criterion": lib.FASA_CRITERION_CA, "chunks_per_head": True,
                             "tokens_per_head": True},
    "fasa by pages": {"method": "fasa", "page": 8},
    "fasa with a pyramid": {"method": "fasa", "pyramid": True},
    "fasa of a share": {"method": "fasa", "n_fac_fraction": 0.3},
    "quest by pages of 8": {"method": "quest", "page": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel("qwen2", n_layer=3, n_head=6, n_head_kv=2))


def decoded(path: Path, device: str, method: dict[str, Any]) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Logits (N_STEPS, n_vocab) of the last tokens, and for every step and layer the lists of positions."""
    given = {
        "n_tip": 3,
        "n_fac": 40,
        "dense_below": 0,
        "n_sink": 3,
        "n_recent": 6,
        "observe_window": 16,
        "refresh_every": 5,
        **method,
    }
    table = Table.random(3, 6, 2, 10)
    with Engine(path, n_ctx=256, n_threads=2, table=table, method=given, device=device) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.tap(N_STEPS)
        logits = np.stack([engine.decode([token]) for token in TOKENS[N_PROMPT:]])
        return logits, [engine.tapped(step, layer)[1] for step in range(N_STEPS) for layer in range(3)]


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_selects_alike(name: str, device: str, model: Path) -> None:
    expected, lists = decoded(model, "cpu", METHODS[name])
    found, found_lists = decoded(model, device, METHODS[name])
    n, n_same, same_steps = 0, 0, set(range(N_STEPS))
    for i, (layer, found_layer) in enumerate(zip(lists, found_lists, strict=True)):
        assert len(layer) == len(found_layer)
        for positions, found_positions in zip(layer, found_layer, strict=True):
            assert len(positions) == len(found_positions)
            n += len(positions)
            n_same += len(np.intersect1d(positions, found_positions))
            if not np.array_equal(positions, found_positions):
                same_steps.discard(i // 3)
    assert (n == 0) == (name == "full")
    assert n_same >= 0.995 * n and len(same_steps) >= 3
    deviation = np.sqrt(np.mean((found - expected) ** 2, axis=1) / np.mean(expected**2, axis=1))
    assert max(deviation[step] for step in same_steps) < 1e-2


# -- the demo model on a book: bench/gpu_fidelity.py measures the same at 4k to 16k tokens --------------------------

BOOK: dict[str, Any] = {"method": "fasa", "n_fac": 128, "dense_layers": 0, "dense_below": 0}
N_BOOK = 400


@pytest.fixture(scope="module")
def book() -> list[int]:
    return Subject(device="cpu").begin(load_texts()[0].text)


@pytest.mark.parametrize("device", [ON_GPU])
def test_a_book_s_tokens_select_alike(device: str, book: list[int]) -> None:
    n_steps, lists = 8, {}
    for name in ("cpu", device):
        with Engine(demo.model_path(), n_ctx=N_BOOK + n_steps, method=BOOK, device=name) as engine:
            engine.decode(book[:N_BOOK])
            engine.tap(n_steps)
            for token in book[N_BOOK : N_BOOK + n_steps]:
                engine.decode([token])
            n_layer = engine.info.n_layer
            lists[name] = [list_ for i in range(n_steps * n_layer) for list_ in engine.tapped(*divmod(i, n_layer))[1]]
    shares = [len(np.intersect1d(a, b)) / BOOK["n_fac"] for a, b in zip(lists["cpu"], lists[device], strict=True)]
    assert len(shares) == n_steps * 8 * 2 and np.mean(shares) >= 0.99


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize(("rows", "n_ctx"), [(-1, N_BOOK + 16), (0, N_BOOK + 17)])
def test_rows_in_host_memory_write_the_same_tokens(rows: int, n_ctx: int, device: str, book: list[int]) -> None:
    """FASA-M as FASA-C, without and with the device's cache of rows.

    With one, other kernels attend than without, which add up in another order; at an n_ctx that is no multiple of 4
    FASA-C takes these too.
    """
    tokens = []
    for kv in ("device", "split"):
        options: dict[str, Any] = {"n_ctx": n_ctx, "method": BOOK, "kv": kv, "kv_cache_rows": rows, "device": device}
        with Engine(demo.model_path(), **options) as engine:
            written = [int(engine.decode(book[:N_BOOK]).argmax())]
            while len(written) < 12:
                written.append(int(engine.decode(written[-1:]).argmax()))
            tokens.append(written)
            assert (engine.stats().rows_hit > 0) == (kv == "split" and rows == 0)
    assert tokens[0] == tokens[1] and len(set(tokens[0])) > 3


@pytest.mark.parametrize("device", [ON_GPU])
def test_calibration_finds_the_same_chunks(device: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", TinyModel(n_vocab=270, vocabulary=True, n_ctx=512, seed=8))
    settings: dict[str, Any] = {"k": 16, "n_fac": 16, "n_sink": 1, "n_recent": 3, "n_steps": 4}
    words = "".join(chr(97 + i * i % 26) for i in range(400))
    tables = [calibrate(path, text=words, device=name, **settings) for name in ("cpu", device)]
    assert tables[0].n_steps == tables[1].n_steps == 4
    np.testing.assert_allclose(tables[1].ca, tables[0].ca, atol=2.01 / (16 * 4))  # two positions in one step
    for name in ("order", "order_head"):
        # Two chunks may hold nearly the same mass.
        assert np.mean(getattr(tables[0], name) == getattr(tables[1], name)) >= 0.9
