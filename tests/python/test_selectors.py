"""Sparse decode steps through the C interface, on tiny models with made-up tables.

Selections are compared with rankings, and logits with attention over those selections, both in NumPy float64.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from devices import each_device
from engine import Engine, Table
from tiny_models import TinyModel, write

from fasa_py import FormatError, UnsupportedError
from fasa_py._native import lib, text

pytestmark = each_device

N_PROMPT, N_STEPS = 150, 12
TOKENS = [(7 * i * i + 3 * i) % 131 for i in range(N_PROMPT + N_STEPS)]
BUDGET = 40
FORCED = {"n_sink": 3, "n_recent": 6}
SPARSE: dict[str, Any] = {"n_fac": BUDGET, "dense_below": 0, "observe_window": 16, "refresh_every": 5, **FORCED}
FASA: dict[str, Any] = {"method": "fasa", "n_tip": 3, **SPARSE}
ROUNDING = 1e-3  # a sum in another order may round a later layer's keys and values to other halves
METHODS = text(lib.fasa_supported_methods()).split(", ")[1:]

MODELS = {
    "llama": TinyModel("llama", n_layer=3),
    "llama-partial": TinyModel("llama", n_layer=3, n_rot=14),
    "qwen2": TinyModel("qwen2", n_layer=3, n_head=6, n_head_kv=2),
    "qwen3": TinyModel("qwen3", n_layer=3, head_dim=32, n_head=4, n_head_kv=1),
    "qwen3-partial": TinyModel("qwen3", n_layer=3, n_rot=6),
}


def table_of(model: TinyModel, seed: int = 0) -> Table:
    m = model.sized()
    return Table.random(m.n_layer, m.n_head, m.n_head_kv, m.head_dim - m.n_rot // 2, seed)


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    model = MODELS[request.param]
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", model), model.sized()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    model = MODELS["llama"]
    return write(tmp_path_factory.mktemp("models") / "llama.gguf", model), model.sized()


def open_engine(tiny: tuple[Path, TinyModel], method: dict[str, Any], **options: Any) -> Engine:
    path, model = tiny
    return Engine(path, **{"n_ctx": 256, "n_threads": 2, "table": table_of(model), "method": method, **options})


def decode_all(engine: Engine, seq: int = 0, first: int = N_PROMPT) -> np.ndarray:
    """Logits of every decode step, (n, n_vocab)."""
    return np.stack([engine.decode([token], seq) for token in TOKENS[first:]])


def run(tiny: tuple[Path, TinyModel], method: dict[str, Any], **options: Any) -> np.ndarray:
    with open_engine(tiny, method, **options) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        return decode_all(engine)


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """RMS of the difference over RMS of b, the worst step."""
    return float(np.max(np.sqrt(np.mean((a - b) ** 2, axis=-1) / np.mean(b**2, axis=-1))))


# -- equal to dense when nothing is left out ---------------------------------------------------------------------------


def test_a_budget_for_everything_is_dense(tiny: tuple[Path, TinyModel]) -> None:
    dense = run(tiny, {"method": "full"})
    whole = {**FASA, "n_fac": 256}
    # A store that is not split adds up in the same order: the same bits.
    assert np.array_equal(run(tiny, {**whole, "chunks_per_head": True}), dense)
    split = run(tiny, whole)
    assert deviation(split, dense) < ROUNDING
    assert np.array_equal(split.argmax(1), dense.argmax(1))
    assert np.array_equal(run(tiny, {**FASA, "dense_below": 256}), split)
    assert deviation(run(tiny, FASA), dense) > 10 * ROUNDING, "the budget under test must change something"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_dense_up_to_its_budget(llama: tuple[Path, TinyModel], method: str) -> None:
    dense = run(llama, {"method": "full"})
    with open_engine(llama, {**SPARSE, "method": method, "n_fac": N_PROMPT + N_STEPS}) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        found = decode_all(engine)
        assert engine.stats().layers_sparse == 0
    assert deviation(found, dense) < ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_every_method_engages(tiny: tuple[Path, TinyModel], method: str) -> None:
    dense, (_, model) = run(tiny, {"method": "full"}), tiny
    for per_head in (False, True):
        with open_engine(tiny, {**SPARSE, "method": method, "n_tip": 3, "tokens_per_head": per_head}) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            assert engine.stats().layers_dense == engine.stats().layers_sparse == 0, "prompts are not counted"
            engine.tap(N_STEPS)
            logits = decode_all(engine)
            stats = engine.stats()
            lists = [engine.tapped(step, layer)[1] for step in range(N_STEPS) for layer in range(model.n_layer)]
        assert stats.layers_sparse == 2 * N_STEPS and stats.layers_dense == N_STEPS
        assert deviation(logits, dense) > 10 * ROUNDING
        assert stats.tokens_selected == sum(len(positions) for layer in lists for positions in layer)
        row = 2 * model.head_dim
        dense_rows = model.n_head_kv * sum(range(N_PROMPT + 1, N_PROMPT + N_STEPS + 1))
        assert stats.value_bytes == row * (dense_rows + stats.tokens_selected)
        assert stats.key_bytes >= stats.value_bytes
        for i, layer in enumerate(lists):
            assert len(layer) == (0 if i % model.n_layer == 0 else model.n_head if per_head else model.n_head_kv)
            for positions in layer:
                n_pos = N_PROMPT + 1 + i // model.n_layer
                assert np.all(np.diff(positions) > 0) and positions[0] >= 0 and positions[-1] == n_pos - 1
                assert len(positions) <= BUDGET + (4 if method in ("snapkv", "rkv") else 0)


# -- what is selected, and what comes of it ----------------------------------------------------------------------------


def chunk_dims(model: TinyModel, chunk: int) -> list[int]:
    """Dims of a chunk in the file [FASA §1]."""
    half = model.n_rot // 2
    if chunk >= half:
        return [chunk + half]
    return [chunk, chunk + half] if model.arch in reference.HALF_SPLIT else [2 * chunk, 2 * chunk + 1]


def dominant_dims(model: TinyModel, ranking: np.ndarray, n_dims: int) -> list[int]:
    """Dims of the best chunks that fill n_dims exactly, no chunk divided."""
    chosen: list[list[int]] = []
    left_out: list[list[int]] = []
    for chunk in ranking:
        dims = chunk_dims(model, int(chunk))
        (chosen if sum(map(len, chosen)) + len(dims) <= n_dims else left_out).append(dims)
    if sum(map(len, chosen)) < n_dims:
        del chosen[max(i for i, dims in enumerate(chosen) if len(dims) == 1)]
        chosen.append(left_out[0])
    return [dim for dims in chosen for dim in dims]


def check_selection(scores: np.ndarray, positions: np.ndarray) -> None:
    """The forced positions and the best of the others, but for scores that rounding could have ordered otherwise."""
    n_pos = len(scores)
    assert len(positions) == BUDGET
    forced = {*range(FORCED["n_sink"]), *range(n_pos - FORCED["n_recent"], n_pos)}
    chosen = set(positions.tolist())
    assert forced <= chosen
    others = sorted(set(range(n_pos)) - forced)
    worst_in = min(scores[i] for i in others if i in chosen)
    best_out = max(scores[i] for i in others if i not in chosen)
    assert worst_in >= best_out - 1e-4


@pytest.mark.parametrize("criterion", ["mass", "ca"])
@pytest.mark.parametrize("granularity", ["kv_head", "head"])
def test_selection_and_attention_agree_with_numpy(
    tiny: tuple[Path, TinyModel], monkeypatch: pytest.MonkeyPatch, granularity: str, criterion: str
) -> None:
    path, model = tiny
    table, per_head = table_of(model), granularity == "head"
    method = {**FASA, "chunks_per_head": per_head, "tokens_per_head": per_head}
    method["criterion"] = getattr(lib, f"FASA_CRITERION_{criterion.upper()}")
    with open_engine(tiny, method) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.tap(N_STEPS)
        logits = decode_all(engine)
        tapped = [[engine.tapped(step, layer) for layer in range(model.n_layer)] for step in range(N_STEPS)]
        keys = [[engine.kv(i, g)[0].astype(float) for g in range(model.n_head_kv)] for i in range(model.n_layer)]

    group = model.n_head // model.n_head_kv

    def ranking(layer: int, head: int) -> np.ndarray:
        if criterion == "mass":
            return table.order_head[layer, head] if per_head else table.order[layer, head // group]
        first = head if per_head else head // group * group
        ca = table.ca[layer, first : first + (1 if per_head else group)].astype(float).mean(0)
        return np.argsort(-ca, kind="stable")

    for step in range(N_STEPS):
        assert tapped[step][0][1] == []
        for layer in range(1, model.n_layer):
            q, lists = tapped[step][layer]
            scores = np.zeros((model.n_head, N_PROMPT + step + 1))
            for head in range(model.n_head):
                dims = dominant_dims(model, ranking(layer, head), 2 * FASA["n_tip"])
                scores[head] = keys[layer][head // group][: N_PROMPT + step + 1, dims] @ q[head, dims].astype(float)
            if not per_head:
                scores = scores.reshape(model.n_head_kv, group, -1).sum(1)
            assert len(lists) == len(scores)
            for row, positions in zip(scores, lists, strict=True):
                check_selection(row, positions)

    dense_attention, layers = reference.attention, iter(range(model.n_layer))

    def sparse_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        out, layer = dense_attention(q, k, v).reshape(q.shape), next(layers)
        for step, row in enumerate(range(N_PROMPT, len(q))):
            lists = tapped[step][layer][1]
            for head in range(model.n_head if lists else 0):
                positions = lists[head * len(lists) // model.n_head]
                score = k[positions, head // group] @ q[row, head] / np.sqrt(model.head_dim)
                p = np.exp(score - score.max())
                out[row, head] = p @ v[positions, head // group] / p.sum()
        return out.reshape(len(q), -1)

    monkeypatch.setattr(reference, "attention", sparse_attention)
    expected = reference.forward(reference.load(path), TOKENS, n_last=N_STEPS)
    assert deviation(logits, expected) < 2e-3


def test_a_split_store_equals_a_whole_one(tiny: tuple[Path, TinyModel]) -> None:
    """The same method on a store that another one laid out: nothing split, or other dims first."""
    expected = run(tiny, FASA)
    for other in ({"method": "full"}, {**FASA, "n_tip": 2}, {**FASA, "criterion": lib.FASA_CRITERION_CA}):
        with open_engine(tiny, other) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            engine.set_method(**FASA)
            found = decode_all(engine)
            assert engine.stats().layers_sparse == 2 * N_STEPS
        assert deviation(found, expected) < ROUNDING


def test_the_split_store_reads_less(llama: tuple[Path, TinyModel]) -> None:
    """Ranking reads the dominant dims alone, 6 of 20, and all of a key when the store is not laid out for it."""
    read = {}
    for name, other in {"split": FASA, "whole": {"method": "full"}}.items():
        with open_engine(llama, other) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            engine.set_method(**FASA)
            decode_all(engine)
            stats = engine.stats()
            read[name] = stats.key_bytes - stats.value_bytes
    assert read["split"] * 20 == read["whole"] * 6


def test_keys_are_read_in_the_order_of_the_file(tiny: tuple[Path, TinyModel]) -> None:
    """Whatever the order in which the cache keeps their dims."""
    _, model = tiny
    caches = []
    for method in ({"method": "full"}, FASA):
        with open_engine(tiny, method) as engine:
            engine.decode(TOKENS[:20])
            caches.append([engine.kv(i, g) for i in range(model.n_layer) for g in range(model.n_head_kv)])
    for (k, v), (k_split, v_split) in zip(*caches, strict=True):
        assert np.max(np.abs(k - k_split)) <= 2e-3 * np.max(np.abs(k))  # later layers differ by rounding
        assert np.max(np.abs(v - v_split)) <= 2e-3 * np.max(np.abs(v))


@pytest.mark.parametrize("n_batch", [3, 5, 149])
def test_prompts_are_dense_whatever_the_batch(llama: tuple[Path, TinyModel], n_batch: int) -> None:
    """150 tokens in batches that may leave one over: that one is no decode step."""
    dense = run(llama, {"method": "full"}, n_batch=n_batch)
    with open_engine(llama, FASA, n_batch=n_batch) as engine:
        engine.decode(TOKENS[: N_PROMPT + 1])
        stats = engine.stats()
        assert (stats.n_prefill, stats.n_decode) == (N_PROMPT + 1, 0)
        assert stats.layers_sparse == stats.layers_dense == 0
        engine.set_method(method="full")
        assert deviation(decode_all(engine, first=N_PROMPT + 1), dense[1:]) < ROUNDING


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_a_restored_split_store_goes_on(tiny: tuple[Path, TinyModel], tmp_path: Path) -> None:
    with open_engine(tiny, FASA) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.save(tmp_path / "state")
        expected = decode_all(engine)
    with open_engine(tiny, FASA, n_seq=2, n_ctx=200) as engine:
        engine.decode(TOKENS[5:100], seq=1)
        engine.load(tmp_path / "state", seq=1)
        assert np.array_equal(decode_all(engine, seq=1), expected)
        assert engine.stats().layers_sparse > 0


def test_a_state_of_another_layout_is_refused(llama: tuple[Path, TinyModel], tmp_path: Path) -> None:
    path, model = llama
    with open_engine(llama, FASA) as engine:
        engine.decode(TOKENS[:20])
        engine.save(tmp_path / "state")
    others: list[dict[str, Any]] = [
        {"method": {"method": "full"}},
        {"method": {**FASA, "n_tip": 4}},
        {"method": {**FASA, "dense_layers": 0}},
        {"method": {**FASA, "criterion": lib.FASA_CRITERION_CA}},
        {"method": FASA, "table": table_of(model, seed=1)},
    ]
    for other in others:
        with open_engine(llama, **other) as engine:
            engine.decode([1, 2, 3])
            with pytest.raises(FormatError, match="another layout"):
                engine.load(tmp_path / "state")
            assert engine.length() == 3
    with open_engine(llama, {**FASA, "n_fac": 10, "tokens_per_head": True}) as engine:  # the layout is the same
        engine.load(tmp_path / "state")
        assert engine.length() == 20
    assert path.exists()


def test_truncate_and_copy_with_a_split_store(tiny: tuple[Path, TinyModel]) -> None:
    expected = run(tiny, FASA)
    with open_engine(tiny, FASA, n_seq=3) as engine:
        engine.decode(TOKENS[:N_PROMPT], seq=2)
        engine.decode([5, 6, 7, 8], seq=2)
        engine.truncate(N_PROMPT, seq=2)
        engine.copy(1, 2, N_PROMPT)
        assert np.array_equal(decode_all(engine, seq=2), expected)
        assert np.array_equal(decode_all(engine, seq=1), expected)
        engine.truncate(100, seq=1)
        engine.decode(TOKENS[100:N_PROMPT], seq=1)
        assert np.array_equal(decode_all(engine, seq=1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_methods_follow_their_sequence(llama: tuple[Path, TinyModel], method: str) -> None:
    """After cutting back to nothing, whatever came before, everything goes as in a fresh context."""
    settings = {**SPARSE, "method": method, "n_tip": 3}
    expected = run(llama, settings)
    with open_engine(llama, settings, n_seq=2) as engine:
        engine.decode(TOKENS[40:160], seq=1)
        decode_all(engine, seq=1)
        engine.truncate(0, seq=1)
        engine.decode(TOKENS[:N_PROMPT], seq=1)
        engine.decode(TOKENS[:N_PROMPT], seq=0)
        for seq in (1, 0):
            assert np.array_equal(decode_all(engine, seq), expected)


@pytest.mark.parametrize(("method", "n_again"), [("snapkv", 16), ("rkv", 16), ("h2o", N_PROMPT)])
def test_a_method_set_later_sees_the_prompt_again(llama: tuple[Path, TinyModel], method: str, n_again: int) -> None:
    settings = {**SPARSE, "method": method}
    expected = run(llama, settings)
    with open_engine(llama, {"method": "full"}) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.set_method(**settings)
        with pytest.raises(ValueError, match=rf"{method} .*truncate"):
            engine.decode(TOKENS[N_PROMPT : N_PROMPT + 1])
        assert engine.length() == N_PROMPT
        engine.truncate(N_PROMPT - n_again)
        engine.decode(TOKENS[N_PROMPT - n_again : N_PROMPT])
        assert deviation(decode_all(engine), expected) < ROUNDING
        assert engine.stats().layers_sparse == 2 * N_STEPS


@pytest.mark.parametrize("method", ["fasa", "oracle", "streaming", "quest", "sparq"])
def test_a_method_set_later_needs_nothing(llama: tuple[Path, TinyModel], method: str) -> None:
    settings = {**SPARSE, "method": method, "n_tip": 3}
    with open_engine(llama, {"method": "full"}) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.set_method(**settings)
        found = decode_all(engine)
    assert deviation(found, run(llama, settings)) < ROUNDING


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_store_split_between_devices_needs_shared_sets(llama: tuple[Path, TinyModel]) -> None:
    per_head = {**FASA, "chunks_per_head": True}
    with pytest.raises(UnsupportedError, match="chunks_per_head"):
        open_engine(llama, per_head, kv="split")
    with pytest.raises(UnsupportedError, match="not method quest"):
        open_engine(llama, {**SPARSE, "method": "quest"}, kv="split")
    assert deviation(run(llama, FASA, kv="split"), run(llama, FASA)) == 0
    with open_engine(llama, FASA, kv="split") as engine:
        with pytest.raises(UnsupportedError, match="split"):
            engine.set_method(**per_head)
        engine.set_method(**{**FASA, "tokens_per_head": True})  # lists per query head need no other layout


def test_an_unknown_method_is_refused_with_the_names(llama: tuple[Path, TinyModel]) -> None:
    with pytest.raises(ValueError, match="snapkv, h2o, quest, rkv"):
        open_engine(llama, {"method": "best"})
    with open_engine(llama, FASA) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        with pytest.raises(ValueError, match=r'"best".*full, fasa'):
            engine.set_method(method="best")
        assert np.array_equal(decode_all(engine), run(llama, FASA)), "the method before stays"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_tip", -1), ("n_tip", 11), ("n_fac", 0), ("n_fac_fraction", 1.5), ("n_fac_fraction", float("nan")),
        ("n_sink", -1), ("n_recent", -1), ("dense_layers", -1), ("page", 0), ("page", 5000), ("observe_window", 0),
        ("refresh_every", 0), ("redundancy_weight", -0.1), ("redundancy_weight", float("nan")),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(llama: tuple[Path, TinyModel], field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        open_engine(llama, {**FASA, field: value})


def test_fasa_needs_a_table(llama: tuple[Path, TinyModel]) -> None:
    with pytest.raises(ValueError, match="calibrat"):
        open_engine(llama, FASA, table=None)
    with open_engine(llama, {"method": "auto"}, table=None) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        decode_all(engine)
        assert engine.stats().layers_sparse == 0
    _, model = llama
    damaged = table_of(model)
    with pytest.raises(FormatError, match="score 0 is nan"):
        open_engine(llama, FASA, table=replace(damaged, ca=np.full_like(damaged.ca, np.nan)))
    with pytest.raises(FormatError, match="no permutation"):
        open_engine(llama, FASA, table=replace(damaged, order=np.zeros_like(damaged.order)))
