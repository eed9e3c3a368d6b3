"""A cache whose rows lie in host memory (kv="split") gives the bits of one that is on the device as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import each_device
from engine import Engine, Table
from tiny_models import TinyModel, write

pytestmark = each_device

N_PROMPT, N_STEPS = 60, 5
TOKENS = [(7 * i * i + 3 * i) % 131 for i in range(4 * N_PROMPT)]
FASA: dict[str, Any] = {
    "method": "fasa", "n_tip": 3, "n_fac": 24, "n_sink": 2, "n_recent": 4, "dense_layers": 0, "dense_below": 0,
}  # fmt: skip
MODELS = {
    "llama": TinyModel("llama", n_layer=3),
    "aligned": TinyModel("qwen2", n_layer=2, head_dim=64, n_head=4, n_head_kv=2),
    "one KV head": TinyModel("qwen3", n_layer=2, head_dim=32, n_head=4, n_head_kv=1),
}
METHODS: dict[str, dict[str, Any]] = {
    "sparse": FASA,
    "whole words": {**FASA, "n_tip": 4},
    "a dense layer": {**FASA, "dense_layers": 1},
    "dense at first": {**FASA, "dense_below": N_PROMPT + 2},
    "lists per query head": {**FASA, "tokens_per_head": True},
    "budgets that grow": {**FASA, "n_fac_fraction": 0.3},
}


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    model = MODELS[request.param]
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", model), model.sized()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    model = MODELS["llama"]
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", model), model.sized()


def open_engine(tiny: tuple[Path, TinyModel], method: dict[str, Any], kv: str, **options: Any) -> Engine:
    path, m = tiny
    table = Table.random(m.n_layer, m.n_head, m.n_head_kv, m.head_dim - m.n_rot // 2)
    return Engine(path, **{"n_ctx": 256, "n_threads": 1, "table": table, "method": method, "kv": kv, **options})


def steps(engine: Engine, first: int, n: int = N_STEPS, seq: int = 0) -> list[np.ndarray]:
    return [engine.decode(TOKENS[i : i + 1], seq) for i in range(first, first + n)]


def same(
    tiny: tuple[Path, TinyModel], method: dict[str, Any], work: Callable[[Engine], list[np.ndarray]], **options: Any
) -> None:
    """What work finds is the same in both placements."""
    found = []
    for kv in ("device", "split"):
        with open_engine(tiny, method, kv, **options) as engine:
            found.append(work(engine))
    assert np.isfinite(found[0]).all()
    assert np.array_equal(*found)


@pytest.mark.parametrize("method", METHODS)
def test_decoding(tiny: tuple[Path, TinyModel], method: str) -> None:
    def work(engine: Engine) -> list[np.ndarray]:
        return [engine.decode(TOKENS[:N_PROMPT]), *steps(engine, N_PROMPT)]

    same(tiny, METHODS[method], work)


@pytest.mark.parametrize(
    ("calls", "n_batch"), [([50, 50], 20), ([1, 1, 3, 28, 11, 9, 10, 20], 33), ([79, 1], 33), ([13, 47], 512)]
)
def test_a_prompt_in_parts(llama: tuple[Path, TinyModel], calls: list[int], n_batch: int) -> None:
    def work(engine: Engine) -> list[np.ndarray]:
        found, at = [], 0
        for n in calls:
            found.append(engine.decode(TOKENS[at : at + n]))
            at += n
        return [*found, *steps(engine, at, 3)]

    same(llama, FASA, work, n_batch=n_batch)


def test_sequences_that_fork_and_go_back(llama: tuple[Path, TinyModel], tmp_path: Path) -> None:
    def work(engine: Engine) -> list[np.ndarray]:
        found = [engine.decode(TOKENS[:N_PROMPT]), *steps(engine, N_PROMPT)]
        engine.copy(1, 0, 50)
        found += steps(engine, 200, 3, seq=1)
        found += steps(engine, 120, 3)
        engine.save(tmp_path / "state", 0)
        engine.truncate(40)
        found += [engine.decode(TOKENS[170:190]), *steps(engine, 10, 3)]
        found += steps(engine, 40, 3, seq=1)
        engine.load(tmp_path / "state", 1)
        found += steps(engine, 50, 3, seq=1)
        engine.copy(0, 1, 65)
        found += steps(engine, 90, 3)
        return found

    same(llama, FASA, work, n_seq=2)


def test_a_state_saved_in_one_placement_is_loaded_in_the_other(llama: tuple[Path, TinyModel], tmp_path: Path) -> None:
    expected = []
    for kv, other in (("device", "split"), ("split", "device")):
        with open_engine(llama, FASA, kv) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            engine.save(tmp_path / "state")
            expected.append(steps(engine, N_PROMPT))
        with open_engine(llama, FASA, other) as engine:
            engine.load(tmp_path / "state")
            assert np.array_equal(steps(engine, N_PROMPT), expected[-1])
    assert np.array_equal(*expected)


def test_other_methods_set_later(llama: tuple[Path, TinyModel]) -> None:
    def work(engine: Engine) -> list[np.ndarray]:
        found = [engine.decode(TOKENS[:50])]
        for method in ("oracle", "streaming", "full"):
            engine.set_method(**{**FASA, "method": method, "observe_window": 8})
            found += [engine.decode(TOKENS[60:80]), *steps(engine, 30, 2)]
        return found

    same(llama, FASA, work)


@pytest.mark.parametrize("method", ["sparse", "a dense layer"])
def test_the_plan_knows_where_rows_lie(llama: tuple[Path, TinyModel], method: str, device: str) -> None:
    m, plans = llama[1], {}
    for kv in ("device", "split"):
        with open_engine(llama, METHODS[method], kv, n_seq=2) as engine:
            plans[kv] = engine.plan()
    n_split = m.n_layer - METHODS[method]["dense_layers"]
    rows = 2 * m.n_head_kv * 256 * n_split * 2 * (2 * m.head_dim - 2 * FASA["n_tip"])
    whole, split = plans["device"], plans["split"]
    assert whole.kv_device_bytes + whole.kv_host_bytes == split.kv_device_bytes + split.kv_host_bytes
    if device == "cuda":
        assert (whole.kv_host_bytes, split.kv_host_bytes) == (0, rows)
        assert split.kv_device_bytes >= split.kv_dom_bytes == whole.kv_dom_bytes
        assert split.host_bytes == split.kv_host_bytes + split.scratch_host_bytes
    else:
        assert split.kv_device_bytes == 0
