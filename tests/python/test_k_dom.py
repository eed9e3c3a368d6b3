"""Dominant keys of 8 and 4 bits: what is selected with them, what they take, and that attention stays exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import each_device
from engine import Engine
from test_method import LONG, complete, made_up_table, numbers
from test_selectors import (
    FASA,
    FORCED,
    N_PROMPT,
    N_STEPS,
    ROUNDING,
    TOKENS,
    decode_all,
    deviation,
    dominant_dims,
    open_engine,
    run,
    table_of,
)
from tiny_models import TinyModel, write

from fasa_py import FormatError, Llama, Method, UnsupportedError, cli

pytestmark = each_device

LARGEST = {"int8": 127, "q4": 7}
CODED = list(LARGEST)
MODELS = {
    "llama": TinyModel("llama", n_layer=3),
    "qwen2": TinyModel("qwen2", n_layer=3, n_head=6, n_head_kv=2),
    "qwen3-partial": TinyModel("qwen3", n_layer=3, n_rot=6),
}


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyModel]:
    model = MODELS[request.param]
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", model), model.sized()


def coded(keys: np.ndarray, k_dom: str) -> np.ndarray:
    """Keys (n, dims) as a cache of this type gives them back, float64: views.h has the rule."""
    largest = LARGEST[k_dom]
    scale = (np.abs(keys).max(axis=1).astype(np.float32) / np.float32(largest)).astype(np.float16)
    inverse = np.float32(1) / scale.astype(np.float32)
    codes = np.clip(np.rint(keys.astype(np.float32) * inverse[:, None]), -largest, largest)
    return codes.astype(np.float64) * scale.astype(np.float64)[:, None]


# -- what is selected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k_dom", CODED)
def test_positions_rank_by_the_codes(tiny: tuple[Path, TinyModel], k_dom: str) -> None:
    _, model = tiny
    table = table_of(model)
    group = model.n_head // model.n_head_kv
    budget, n_sink, n_recent = FASA["n_fac"], FORCED["n_sink"], FORCED["n_recent"]
    n_other = 0
    with open_engine(tiny, FASA, k_dom=k_dom) as engine:
        engine.decode(TOKENS[:N_PROMPT])
        engine.tap(N_STEPS)
        decode_all(engine)
        for layer in range(1, model.n_layer):
            for head_kv in range(model.n_head_kv):
                dims = dominant_dims(model, table.order[layer, head_kv], 2 * FASA["n_tip"])
                keys = engine.kv(layer, head_kv)[0][:, dims]
                for step in range(N_STEPS):
                    q, positions = engine.tapped(step, layer)
                    n_pos = N_PROMPT + 1 + step
                    query = q[head_kv * group : (head_kv + 1) * group, dims].sum(axis=0, dtype=np.float64)
                    scores = coded(keys[:n_pos], k_dom) @ query
                    scores[:n_sink] = scores[-n_recent:] = np.inf
                    found = set(positions[head_kv].tolist())
                    assert len(found) == budget
                    lowest = np.sort(scores)[-budget]
                    near = 1e-5 * np.abs(scores[n_sink:-n_recent]).max()
                    assert {int(i) for i in np.flatnonzero(scores > lowest + near)} <= found
                    assert all(scores[i] >= lowest - near for i in found)
                    exact = keys[:n_pos] @ query
                    exact[:n_sink] = exact[-n_recent:] = np.inf
                    n_other += len(found - set(np.argsort(-exact, kind="stable")[:budget].tolist()))
    n_all = 2 * model.n_head_kv * N_STEPS * budget
    assert 0 < n_other / n_all < {"int8": 0.03, "q4": 0.2}[k_dom], "close to what exact keys select, not the same"


@pytest.mark.parametrize("k_dom", CODED)
def test_attention_is_exact(tiny: tuple[Path, TinyModel], k_dom: str) -> None:
    """Codes only choose positions: where all are attended to, or others choose them, nothing changes."""
    whole = {**FASA, "n_fac": 256}
    assert deviation(run(tiny, whole, k_dom=k_dom), run(tiny, {"method": "full"})) < ROUNDING
    for method in ({"method": "full"}, {**FASA, "n_tip": 2}, {**FASA, "method": "oracle"}):
        with open_engine(tiny, FASA, k_dom=k_dom) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            engine.set_method(**method)
            found = decode_all(engine)
        assert deviation(found, run(tiny, method)) < ROUNDING
    assert deviation(run(tiny, FASA, k_dom=k_dom), run(tiny, FASA)) < 0.5


def test_keys_can_be_read_back(tiny: tuple[Path, TinyModel]) -> None:
    found = []
    for k_dom in ("f16", *CODED):
        with open_engine(tiny, FASA, k_dom=k_dom) as engine:
            engine.decode(TOKENS[:20])
            found.append(engine.kv(0, 1))
    for k, v in found[1:]:
        assert np.array_equal(k, found[0][0]) and np.array_equal(v, found[0][1])


# -- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k_dom", "dom_bytes", "share"), [("f16", 64, 8), ("int8", 34, 15), ("q4", 18, 28)])
def test_the_plan_has_every_byte(k_dom: str, dom_bytes: int, share: int) -> None:
    """Per token and KV head, 16 dominant chunks of the demo model's heads of 128 dims; 8 layers, 2 KV heads."""
    n_ctx, whole = 1000, 512
    for dense_layers in (0, 1):
        method = {"method": "fasa", "n_tip": 16, "dense_layers": dense_layers}
        with Llama(n_ctx=n_ctx, table=made_up_table(), k_dom=k_dom, **method) as llm:
            plan = llm.plan
        assert plan.kv_dom_bytes == n_ctx * (8 - dense_layers) * 2 * dom_bytes
        copies = 0 if k_dom == "f16" else plan.kv_dom_bytes
        assert plan.kv_bytes == n_ctx * 8 * 2 * whole + copies
        if dense_layers == 0:
            assert plan.kv_dom_bytes <= 1.01 * n_ctx * 8 * 2 * whole / share


@pytest.mark.parametrize("k_dom", CODED)
def test_steps_count_the_bytes_of_codes(k_dom: str) -> None:
    prompt, n = LONG[:1200], 8
    method = Method("fasa", n_tip=16, n_fac=64, dense_layers=0, dense_below=0)
    with Llama(n_ctx=1300, table=made_up_table(), method=method, k_dom=k_dom) as llm:
        result = complete(llm, prompt, n)
    assert result.sparsity.layers_sparse == 8 * (n - 1)
    rows = 8 * 2 * sum(range(len(prompt) + 1, len(prompt) + n))
    read = rows * {"int8": 34, "q4": 18}[k_dom] + 8 * 2 * (n - 1) * 64 * 512
    assert result.sparsity.kv_bytes_per_step == pytest.approx(read / (n - 1))


# -- conversations -------------------------------------------------------------------------------------------------


@pytest.fixture(params=CODED)
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    method = Method("fasa", n_fac=64, dense_below=0)
    yield {"n_ctx": 2000, "table": made_up_table(), "method": method, "k_dom": request.param}


def test_a_saved_conversation_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Llama(**options) as llm:
        start = complete(llm, LONG)
        llm.save_state(path)
        expected = complete(llm, [*LONG, *start.tokens], logprobs=0)
    with Llama(**options, kv="split") as llm:
        llm.load_state(path)
        result = complete(llm, [*LONG, *start.tokens], logprobs=0)
    assert result.usage.reused_tokens == expected.usage.reused_tokens > len(LONG)
    assert numbers(result) == numbers(expected)
    assert result.sparsity == expected.sparsity and result.sparsity.layers_sparse == 23 * 7


def test_a_state_with_other_codes_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "state"
    with Llama(**options) as llm:
        llm.logits(LONG[:50])
        llm.save_state(path)
    for other in {"f16", *CODED} - {options["k_dom"]}:
        with Llama(**{**options, "k_dom": other}) as llm:
            with pytest.raises(FormatError, match="k_dom"):
                llm.load_state(path)
            assert llm.tokens == []
            llm.logits(LONG[:50])
            llm.save_state(tmp_path / "other")
        with Llama(**options) as llm, pytest.raises(FormatError, match="k_dom"):
            llm.load_state(tmp_path / "other")


def test_prefix_reuse_changes_nothing(options: dict[str, Any]) -> None:
    with Llama(**options) as llm:
        fresh = complete(llm, LONG, logprobs=0)
        branch = complete(llm, [*LONG[:1000], 7, *LONG[1001:]])
        assert branch.usage.reused_tokens == 1000
        assert numbers(complete(llm, LONG, logprobs=0)) == numbers(fresh)


def test_a_forked_sequence_has_its_codes(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", MODELS["llama"])
    tiny = path, MODELS["llama"].sized()
    for k_dom in CODED:
        with open_engine(tiny, FASA, n_seq=2, k_dom=k_dom) as engine:
            engine.decode(TOKENS[:N_PROMPT])
            engine.copy(1, 0, N_PROMPT)
            assert np.array_equal(decode_all(engine, 1), decode_all(engine, 0))


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k_dom": "int4"}, ValueError, "k_dom must be one of f16, int8, q4"),
        ({"k_dom": 8}, ValueError, "k_dom must be one of"),
        ({"k_dom": "int8", "method": "full"}, UnsupportedError, "dominant keys of 8 or 4 bits"),
        ({"k_dom": "q4", "granularity": "head"}, UnsupportedError, "sets per query head"),
        ({"k_dom": "q4", "method": "quest"}, UnsupportedError, "not method quest"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Llama(n_ctx=64, **({"table": made_up_table()} | options))


def test_a_number_that_names_no_type(tiny: tuple[Path, TinyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lib", _Lib3())
    with pytest.raises(ValueError, match="k_dom is 3"):
        Engine(tiny[0], k_dom="q9", table=table_of(tiny[1]), method=FASA)


class _Lib3:
    """The library with a further type."""

    FASA_K_DOM_Q9 = 3

    def __getattr__(self, name: str) -> Any:
        from fasa_py._native import lib

        return getattr(lib, name)


def test_the_command_line_has_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompt = tmp_path / "prompt"
    prompt.write_text("The sea ")
    arguments = ["generate", "-f", str(prompt), "-c", "8192", "-n", "3", "--temp", "0"]
    assert cli.main([*arguments, "--k-dom", "q4", "-v"]) == 0
    assert "dominant keys 2 MiB" in capsys.readouterr().err
    assert cli.main([*arguments, "--k-dom", "int4"]) != 0
    assert "f16, int8, q4" in capsys.readouterr().err


def test_a_method_changed_later_reads_exact_keys() -> None:
    """Codes are of the dims that the context was made for: with others, whole keys are ranked by, and counted."""
    method = Method("fasa", n_tip=16, n_fac=64, dense_below=0)
    with Llama(n_ctx=1300, table=made_up_table(), method=method, k_dom="q4") as llm:
        prompt = LONG[:1200]
        by_codes = complete(llm, prompt, 8).sparsity.kv_bytes_per_step
        llm.set_method(Method("fasa", n_tip=8, n_fac=64, dense_below=0))
        assert complete(llm, prompt, 8).sparsity.kv_bytes_per_step > 2 * by_codes
