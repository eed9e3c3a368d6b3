"""A cache whose rows lie in host memory (kv="split") gives the bits of one that is on the device as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import ON_GPU, each_device
from engine import Engine, Table
from tiny_models import TinyModel, write

pytestmark = each_device
on_gpu = pytest.mark.parametrize("device", [ON_GPU], indirect=True)  # host memory is the device's own elsewhere

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
    "all layers dense": {**FASA, "dense_layers": 3},
    "dense at first": {**FASA, "n_fac": N_PROMPT + 2},
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
    tiny: tuple[Path, TinyModel],
    method: dict[str, Any],
    work: Callable[[Engine], list[np.ndarray]],
    rows: tuple[int, ...] = (-1, 16),
    **options: Any,
) -> None:
    """What work finds is the same to the bit in both placements, with a cache of rows on the device and without."""
    with open_engine(tiny, method, "device", **options) as engine:
        expected = work(engine)
    assert np.isfinite(expected).all()
    for n in rows:
        with open_engine(tiny, method, "split", kv_cache_rows=n, **options) as engine:
            assert np.array_equal(work(engine), expected)


@pytest.mark.parametrize("method", METHODS)
def test_decoding(tiny: tuple[Path, TinyModel], method: str) -> None:
    def work(engine: Engine) -> list[np.ndarray]:
        return [engine.decode(TOKENS[:N_PROMPT]), *steps(engine, N_PROMPT)]

    same(tiny, METHODS[method], work, rows=(-1, 80))


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

    same(llama, FASA, work, rows=(-1,), n_batch=n_batch)


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

    same(llama, FASA, work, rows=(-1, 16, 0), n_seq=2)


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
        assert split.row_cache_bytes == whole.row_cache_bytes == 0
        assert split.kv_device_bytes >= split.kv_dom_bytes == whole.kv_dom_bytes
        assert split.host_bytes == split.kv_host_bytes + split.scratch_host_bytes
    else:
        assert split.kv_device_bytes == 0


# -- the cache of rows -------------------------------------------------------------------------------------------------


class CacheOfRows:
    """What the device's cache of one layer and KV head has of one sequence: sets of 16 places, of which the longest
    unused ones are given away."""

    WAYS = 16

    def __init__(self, n_rows: int) -> None:
        n_set = -(-n_rows // self.WAYS)
        self.n_staged = n_set * self.WAYS // 4
        self.tag, self.used = np.zeros((2, n_set, self.WAYS), np.int64)
        self.now = 0

    def step(self, positions: np.ndarray) -> int:
        """Takes a step's positions; returns how many were there."""
        self.now += 1
        tags = positions.astype(np.int64) + 1
        sets = tags % len(self.tag)
        missing = []
        for j, (tag, i) in enumerate(zip(tags, sets, strict=True)):
            found = self.tag[i] == tag
            self.used[i, found] = self.now
            if not found.any():
                missing.append(j)
        n_turn = -(-len(tags) // self.n_staged)
        turn = positions[-1] % n_turn  # the step's own position is always chosen
        staged = [j for j in missing if j // self.n_staged == turn]
        free = {
            i: [w for w in np.argsort(self.used[i], kind="stable") if self.used[i, w] < self.now] for i in set(sets)
        }
        for j in staged:
            if free[sets[j]]:
                way = free[sets[j]].pop(0)
                self.tag[sets[j], way], self.used[sets[j], way] = tags[j], self.now
        return len(tags) - len(missing)


@on_gpu
@pytest.mark.parametrize("n_rows", [1, 40, 0])
@pytest.mark.parametrize("n_ctx", [256, 255])  # 255: scores of heads do not begin at whole words, other kernels run
def test_counts_of_the_cache_of_rows(tiny: tuple[Path, TinyModel], n_ctx: int, n_rows: int) -> None:
    m, n_steps = tiny[1], 9
    method = {**FASA, "n_tip": 4}
    n_token_rows, row_bytes = m.n_layer * m.n_head_kv, 2 * (2 * m.head_dim - 2 * 4)
    with open_engine(tiny, method, "split", kv_cache_rows=n_rows, n_ctx=n_ctx) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        assert engine.stats().pcie_bytes == row_bytes * n_token_rows * N_PROMPT
        engine.tap(n_steps)
        steps(engine, N_PROMPT, n_steps)
        caches = {i: [CacheOfRows(n_rows or 4 * FASA["n_fac"]) for _ in range(m.n_head_kv)] for i in range(m.n_layer)}
        n_hit = 0
        for step in range(n_steps):
            for layer, heads in caches.items():
                lists = engine.tapped(step, layer)[1]
                n_hit += sum(head.step(chosen) for head, chosen in zip(heads, lists, strict=True))
        stats = engine.stats()
    n_read = n_steps * n_token_rows * FASA["n_fac"]
    assert 0 < n_hit < n_read
    assert (stats.rows_hit, stats.rows_missed) == (n_hit, n_read - n_hit)
    assert stats.pcie_bytes == row_bytes * (n_read - n_hit + n_token_rows * (N_PROMPT + n_steps))


@on_gpu
def test_bytes_that_cross_the_bus(llama: tuple[Path, TinyModel]) -> None:
    m = llama[1]
    row_bytes, n_rows = 2 * (2 * m.head_dim - 2 * FASA["n_tip"]), (m.n_layer - 1) * m.n_head_kv
    with open_engine(llama, {**FASA, "dense_layers": 1, "dense_below": 24}, "split") as engine:
        engine.decode(TOKENS[:20])
        steps(engine, 20, 3)  # dense, over 21, 22 and 23 rows
        engine.decode(TOKENS[30:60])
        engine.decode(TOKENS[60:65])  # few rows read all of the past where it lies
        steps(engine, 70, 2)
        stats = engine.stats()
    n_written, n_dense, n_sparse, n_past = 60, 21 + 22 + 23, 2 * 24, 23 + 58
    assert (stats.rows_hit, stats.rows_missed) == (0, n_rows * (n_dense + n_sparse))
    assert stats.pcie_bytes == row_bytes * n_rows * (n_written + n_dense + n_sparse + n_past)


@on_gpu
def test_dense_steps_read_few_rows_of_host_memory(llama: tuple[Path, TinyModel]) -> None:
    def opened(n_rows: int, **changes: Any) -> Engine:
        return open_engine(llama, {**FASA, **changes}, "split", kv_cache_rows=n_rows)

    with pytest.raises(ValueError, match=r"dense_below is 41.*may read 40"):
        opened(40, dense_below=41)
    with pytest.raises(ValueError, match=r"dense_below is 25.*may read 24"):
        opened(-1, dense_below=25)
    with opened(40, dense_below=40) as engine:
        with pytest.raises(ValueError, match="dense_below is 41"):
            engine.set_method(**{**FASA, "dense_below": 41})
        engine.decode(TOKENS[:39])
        steps(engine, 50, 2)
        assert (engine.stats().layers_dense, engine.stats().layers_sparse) == (3, 3)
    with opened(30, dense_below=-1) as engine:
        engine.decode(TOKENS[:29])
        steps(engine, 50, 2)
        assert (engine.stats().layers_dense, engine.stats().layers_sparse) == (3, 3)


def test_a_cache_of_rows_that_cannot_be(llama: tuple[Path, TinyModel]) -> None:
    with pytest.raises(ValueError, match="kv_cache_rows is -2"):
        open_engine(llama, FASA, "split", kv_cache_rows=-2)
