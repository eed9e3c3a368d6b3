"""Methods in Python: settings and tables checked, sparse decode steps counted, switched, saved, reused and shared."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import each_device
from gguf import GGUFValueType, GGUFWriter
from tiny_models import TinyModel, write

import fasa_py
from fasa_py import Completion, FormatError, Llama, Method, UnsupportedError, cli, demo
from fasa_py._native import ffi, lib
from fasa_py.method import supported_methods

LONG = fasa_py.Tokenizer(demo.model_path()).encode(demo.text()[:9000])[:1500]  # more than sparse attention needs to pay
TYPES = {"f": GGUFValueType.FLOAT32, "H": GGUFValueType.UINT16}
FEW = 32  # of a prompt that is known, at most so many tokens are processed again
SHAPE = (8, 4, 64)  # layers, heads and chunks of the demo model; 2 KV heads


def made_up_table(seed: int = 0, **changes: Any) -> SimpleNamespace:
    """A random table that fits the demo model."""
    rng = np.random.default_rng(seed)
    table = {
        "ca": rng.random(SHAPE),
        "order": rng.permuted(np.tile(np.arange(64), (8, 2, 1)), axis=2),
        "order_head": None,
        "criterion": "mass",
    }
    return SimpleNamespace(**(table | changes))


@pytest.fixture(scope="module")
def llm(device: str) -> Iterator[Llama]:
    """The demo model with its own table, 6,000 tokens of context. Tests set the method that they need."""
    with Llama(n_ctx=6000) as made:
        yield made


def complete(llm: Llama, prompt: Any, n: int = 24, **options: Any) -> Completion:
    return llm.generate(prompt, stream=False, max_tokens=n, temperature=0, **options)


def numbers(result: Completion) -> list[float | None]:
    """Log probabilities of the tokens drawn: any change of what is attended to changes them."""
    assert result.logprobs is not None
    return [entry.logprob for entry in result.logprobs]


def forced(llm: Llama) -> np.ndarray:
    """Logits of decode steps over given tokens, float32 (20, n_vocab)."""
    context = llm._context
    context.truncate(0, 0)
    context.decode(0, LONG[:-20])
    rows = []
    for token in LONG[-20:]:
        context.decode(0, [token])
        rows.append(context.logits.copy())
    return np.stack(rows)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Of logits, root mean square relative to their spread."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / a.std())


# -- settings ------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_engine() -> None:
    params = ffi.new("fasa_method_params *")
    lib.fasa_method_params_default(params)
    assert Method.read_from(params) == Method()


@pytest.mark.parametrize(
    "method",
    [
        Method("fasa", n_tip=7, n_fac=99, n_sink=1, n_recent=0, dense_layers=3, dense_below=17, criterion="ca"),
        Method("fasa", n_tip=0.5, n_fac=0.25, chunks="head", budgets="pyramid").paper(),
        Method("oracle", page=16, tokens="head", criterion="mass", n_fac=1.0),
        Method("sparq", quest_score="mean_std", observe_window=8, refresh_every=5, redundancy_weight=0.1),
    ],
)
def test_a_method_survives_the_way_to_the_engine(method: Method) -> None:
    params = ffi.new("fasa_method_params *")
    method.write_to(params)
    assert Method.read_from(params) == method


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nosuch"}, "method must be one of auto, full, fasa"),
        ({"name": None}, "method must be one of"),
        ({"n_tip": 0}, "n_tip must be between 1"),
        ({"n_tip": 0.0}, "n_tip must be above 0"),
        ({"n_tip": 1.5}, "n_tip must be"),
        ({"n_tip": True}, "n_tip must be a whole number"),
        ({"n_fac": 0}, "n_fac must be between 1"),
        ({"n_fac": 0.0}, "n_fac must be above 0"),
        ({"n_fac": 1.5}, "n_fac must be between 0 and 1"),
        ({"n_fac": float("nan")}, "n_fac must be between 0 and 1"),
        ({"n_fac": "256"}, "n_fac must be a whole number"),
        ({"n_sink": -1}, "n_sink must be between 0"),
        ({"n_recent": 2**31}, "n_recent must be between 0"),
        ({"dense_layers": 1.5}, "dense_layers must be a whole number"),
        ({"dense_below": -1}, "dense_below must be between 0"),
        ({"page": 0}, "page must be between 1"),
        ({"chunks": "group"}, "chunks must be one of kv_head, head"),
        ({"tokens": 1}, "tokens must be one of kv_head, head"),
        ({"criterion": "best"}, "criterion must be one of auto, ca, mass"),
        ({"budgets": "cone"}, "budgets must be one of uniform, pyramid"),
        ({"quest_score": "max"}, "quest_score must be one of"),
        ({"observe_window": 0}, "observe_window must be between 1"),
        ({"refresh_every": 0}, "refresh_every must be between 1"),
        ({"redundancy_weight": -0.1}, "redundancy_weight must be between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Method(**settings)


def test_the_papers_settings() -> None:
    paper = Method("fasa").paper()
    assert (paper.n_sink, paper.n_recent, paper.dense_layers, paper.dense_below) == (0, 0, 0, 0)
    assert (paper.chunks, paper.tokens, paper.criterion) == ("head", "head", "ca")
    assert (paper.name, paper.n_tip, paper.n_fac) == ("fasa", None, 256)


def test_names_settings_and_granularity_combine() -> None:
    assert Method.of("fasa", n_fac=64, n_sink=None) == Method("fasa", n_fac=64)
    assert Method.of(Method("fasa", n_fac=64), paper=True, n_recent=8) == replace(
        Method("fasa", n_fac=64).paper(), n_recent=8
    )
    assert Method.of("fasa", granularity="head") == Method("fasa", chunks="head", tokens="head")
    with pytest.raises(ValueError, match="granularity must be one of kv_head, head"):
        Method.of("fasa", granularity="layer")
    with pytest.raises(TypeError, match="n_tips"):
        Method.of("fasa", n_tips=3)


def test_a_method_in_words() -> None:
    assert str(Method("full", n_fac=3)) == "full"
    assert str(Method("fasa", n_tip=16, criterion="mass", n_recent=0)) == (
        "fasa (n_fac 256, n_tip 16, criterion mass, n_recent 0)"
    )


# -- choosing ------------------------------------------------------------------------------------------------------


def test_auto_is_fasa_with_a_table_and_full_without(tiny_llm: Llama) -> None:
    assert tiny_llm.method.name == "full"
    with Llama(n_ctx=64) as llm:
        resolved = llm.method
    assert (resolved.name, resolved.n_tip, resolved.n_fac) == ("fasa", 16, 256)
    assert (resolved.n_sink, resolved.n_recent, resolved.dense_layers) == (4, 32, 1)
    assert resolved.criterion in ("ca", "mass") and resolved.dense_below is not None
    with Llama(n_ctx=64, method="full", n_fac=9) as llm:
        assert (llm.method.name, llm.method.n_fac) == ("full", 9)
    with Llama(n_ctx=64, method=Method("fasa", n_tip=3), n_sink=1, paper=True, granularity="kv_head") as llm:
        got = llm.method
        assert (got.n_tip, got.n_sink, got.n_recent, got.chunks, got.criterion) == (3, 1, 0, "kv_head", "ca")


def test_fasa_without_a_table_says_how_to_calibrate(tiny_path: Path, tiny_llm: Llama) -> None:
    with pytest.raises(ValueError, match=r"no FASA table.*calibrate_to_gguf"):
        Llama(tiny_path, method="fasa")
    before = tiny_llm.method
    with pytest.raises(ValueError, match=r"no FASA table.*calibrate_to_gguf"):
        tiny_llm.set_method("fasa")
    assert tiny_llm.method == before
    assert len(complete(tiny_llm, "still usable").tokens) > 0


@each_device
def test_every_method_that_the_engine_has_generates(tiny_path: Path) -> None:
    assert {"full", "fasa", "oracle", "streaming", "sparq"} <= set(supported_methods())
    rng = np.random.default_rng(1)
    with Llama(tiny_path) as llm:
        n_chunk = llm.info.head_dim // 2
        shape = (llm.info.n_layer, llm.info.n_head, n_chunk)
    table = SimpleNamespace(ca=rng.random(shape), order=None)
    with Llama(tiny_path, table=table) as llm:
        for name in supported_methods():
            llm.set_method(name, n_fac=40, n_recent=8, dense_below=0)
            result = complete(llm, [i % 256 for i in range(150)], 8, logit_bias={258: -np.inf})
            assert result.sparsity.n_steps == 7
            assert result.sparsity.layers_sparse == (0 if name == "full" else 7 * (llm.info.n_layer - 1)), name


@each_device
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"method": "nosuch"}, ValueError, "method must be one of"),
        ({"method": 3}, ValueError, "method must be one of"),
        ({"n_fac": 2.0}, ValueError, "n_fac must be between 0 and 1"),
        ({"n_tip": 65, "method": "fasa"}, ValueError, "n_tip"),
        ({"granularity": "token"}, ValueError, "granularity must be"),
        ({"criterion": "x"}, ValueError, "criterion must be"),
        ({"kv": "host"}, ValueError, "kv must be one of auto, device, split"),
        ({"kv": "split", "method": "full"}, UnsupportedError, "split between device and host"),
        ({"kv": "split", "paper": True}, UnsupportedError, "sets per query head"),
        ({"kv": "split", "granularity": "head"}, UnsupportedError, "sets per query head"),
        ({"n_tips": 3}, TypeError, "n_tips"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        Llama(n_ctx=64, **({"table": made_up_table()} | options))


@each_device
def test_a_split_cache_refuses_sets_per_query_head_later_too() -> None:
    with Llama(n_ctx=64, table=made_up_table(), kv="split") as llm:
        before = llm.method
        with pytest.raises(UnsupportedError, match="per query head"):
            llm.set_method("fasa", granularity="head", criterion="ca")
        assert llm.method == before
        assert llm.set_method("full").name == "full"


# -- tables --------------------------------------------------------------------------------------------------------


@each_device
def test_another_files_table(tmp_path: Path) -> None:
    """The table of the path given decides, as the same arrays do."""
    values: dict[str, Any] = {
        "llama.block_count": 8, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "fasa.version": 1, "fasa.n_chunk": 64, "fasa.chunk_layout": "interleaved", "fasa.criterion": "mass",
        "fasa.calibration.k": 256, "fasa.calibration.n_steps": 1, "fasa.calibration.n_samples": 1,
        "fasa.calibration.source": "made up", "fasa.calibration.model_sha256": 64 * "0",
    }  # fmt: skip
    given = made_up_table(3)
    arrays = {
        "fasa.ca_scores": given.ca.astype(np.float32).ravel(),
        "fasa.chunk_order": given.order.astype(np.uint16).ravel(),
    }
    path = carrier(tmp_path, values | arrays)
    found = []
    for table in (path, str(path), given, made_up_table(4)):
        with Llama(n_ctx=2000, table=table, method="fasa", n_fac=48, n_tip=2, dense_layers=0) as llm:
            found.append(numbers(complete(llm, LONG, logprobs=0)))
    assert found[0] == found[1] == found[2] != found[3]
    for changes, message in (
        ({"fasa.version": None}, "no FASA table"),
        ({"fasa.version": 2}, "version 2"),
        ({"fasa.n_chunk": 32}, "fasa.ca_scores"),
        ({"llama.block_count": 4}, "fasa.ca_scores"),
        ({"fasa.chunk_layout": "half_split"}, "chunk layout"),
        ({"fasa.criterion": "best"}, "criterion must be"),
        ({"fasa.ca_scores": None}, "fasa.ca_scores"),
        ({"fasa.ca_scores": arrays["fasa.ca_scores"][:-1]}, "fasa.ca_scores"),
        ({"fasa.ca_scores": np.full(2048, 1.5, np.float32)}, "expected 0 to 1"),
        ({"fasa.ca_scores": np.full(2048, np.nan, np.float32)}, "expected 0 to 1"),
        ({"fasa.chunk_order": np.zeros(1024, np.uint16)}, "no permutation"),
        ({"fasa.chunk_order": np.full(1024, 64, np.uint16)}, "0 to 63"),
        ({"fasa.chunk_order": "text"}, "fasa.chunk_order"),
    ):
        with pytest.raises(ValueError, match=message):  # FormatError is one
            Llama(n_ctx=64, table=carrier(tmp_path, values | arrays | changes))
    with pytest.raises(OSError, match="missing"):
        Llama(n_ctx=64, table=tmp_path / "missing.gguf")


def carrier(directory: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with these keys, of no use as a model."""
    path = directory / "table.gguf"
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, TYPES[value.dtype.char])
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        (made_up_table(ca=np.zeros((8, 4, 63))), FormatError, "(8, 4, 63), this model needs (8, 4, 64)"),
        (made_up_table(ca=np.zeros((2, 4, 64))), FormatError, "this model needs (8, 4, 64)"),
        (made_up_table(ca=np.full(SHAPE, np.nan)), FormatError, "expected 0 to 1"),
        (made_up_table(ca=np.full(SHAPE, -0.1)), FormatError, "expected 0 to 1"),
        (made_up_table(ca=np.full(SHAPE, "x")), FormatError, "type"),
        (made_up_table(ca=None), ValueError, "ca"),
        (made_up_table(order=np.zeros((8, 4, 64), int)), FormatError, "this model needs (8, 2, 64)"),
        (made_up_table(order=np.zeros((8, 2, 64), int)), FormatError, "no permutation"),
        (made_up_table(order=np.full((8, 2, 64), -1)), FormatError, "0 to 63"),
        (made_up_table(order=np.full((8, 2, 64), 70000)), FormatError, "0 to 63"),
        (made_up_table(order=np.zeros((8, 2, 64))), FormatError, "type"),
        (made_up_table(order_head=np.zeros(SHAPE, int)), FormatError, "no permutation"),
        (made_up_table(order=None), ValueError, "mass"),
        (made_up_table(criterion="best"), ValueError, "criterion must be"),
        (SimpleNamespace(order=None), TypeError, "a table is"),
        (17, TypeError, "a table is"),
    ],
)
def test_wrong_tables_are_refused(table: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        Llama(n_ctx=64, table=table)


def test_the_number_of_chunks_that_a_table_recommends(tmp_path: Path) -> None:
    with Llama(n_ctx=64, table=made_up_table(n_tip=11)) as llm:
        assert llm.method.n_tip == 11
        assert llm.set_method("fasa", n_tip=5).n_tip == 5
        assert llm.set_method("fasa").n_tip == 11
    with Llama(n_ctx=64) as llm:
        shares = {0.25: 16, 0.5: 32, 0.001: 1}
        assert {share: llm.set_method("fasa", n_tip=share).n_tip for share in shares} == shares
        assert llm.set_method("r-kv").name == "rkv"
    for n_tip in (0, 65):
        with pytest.raises(ValueError, match="n_tip"):
            Llama(n_ctx=64, table=made_up_table(n_tip=n_tip))
    tiny = TinyModel(n_vocab=270, vocabulary=True, head_dim=16)
    ca = np.random.default_rng(0).random(2 * 4 * 8).astype(np.float32)
    for n_tip, expected in ((3, 3), (None, 2)):
        with Llama(write(tmp_path / "tiny.gguf", tiny, meta=stored(ca, n_tip))) as llm:
            assert (llm.method.name, llm.method.n_tip) == ("fasa", expected)
    for n_tip in (0, 9):
        with pytest.raises(FormatError, match=r"fasa\.n_tip"):
            Llama(write(tmp_path / "tiny.gguf", tiny, meta=stored(ca, n_tip)))


def stored(ca: np.ndarray, n_tip: int | None) -> dict[str, Any]:
    """Keys of a table in a file of eight chunks a head."""
    keys = {
        "fasa.version": 1,
        "fasa.n_chunk": 8,
        "fasa.chunk_layout": "interleaved",
        "fasa.criterion": "ca",
        "fasa.ca_scores": ca.tolist(),
    }
    return keys if n_tip is None else keys | {"fasa.n_tip": n_tip}


@each_device
def test_a_criterion_that_the_table_lacks() -> None:
    with Llama(n_ctx=64, table=made_up_table(order=None, criterion="ca")) as llm:
        assert llm.method.criterion == "ca"
        with pytest.raises(ValueError, match="calibrate with criterion mass"):
            llm.set_method("fasa", criterion="mass")
        assert llm.method.criterion == "ca"


@each_device
def test_the_criterion_decides_whatever_the_cache_was_split_by() -> None:
    """In a cache laid out by one criterion, the other one selects as in a cache of its own."""
    settings: dict[str, Any] = {"n_fac": 48, "n_tip": 2, "dense_layers": 0, "dense_below": 0}
    own, switched = [], []
    for criterion in ("ca", "mass"):
        with Llama(n_ctx=2000, table=made_up_table(5), method=Method("fasa", criterion=criterion, **settings)) as llm:
            own.append(forced(llm))
            other = "mass" if criterion == "ca" else "ca"
            llm.set_method("fasa", criterion=other, **settings)
            switched.insert(0, forced(llm))
    assert difference(own[0], own[1]) > 0.1
    for a, b in zip(own, switched, strict=True):  # equal but for rounding: keys, and so their sums, in another order
        assert difference(a, b) < 0.25 * difference(own[0], own[1])


# -- what it does --------------------------------------------------------------------------------------------------


def test_a_budget_of_all_tokens_is_dense_attention(llm: Llama) -> None:
    """While no more than n_fac tokens are cached, the bits are those of full attention."""
    prompt = LONG[:700]
    llm.set_method("full")
    dense = complete(llm, prompt, 40, logprobs=0)
    llm.set_method("fasa", n_fac=800, dense_below=0)
    llm.reset()
    sparse = complete(llm, prompt, 40, logprobs=0)
    assert sparse.tokens == dense.tokens
    assert numbers(sparse) == numbers(dense)
    assert sparse.sparsity.layers_sparse == 0 and sparse.sparsity == dense.sparsity


def test_the_split_cache_is_the_same_cache(llm: Llama) -> None:
    """Dense attention over keys in split order: the numbers of an unsplit cache, but for the order of sums."""
    llm.set_method("full")
    with Llama(n_ctx=2000, method="full") as unsplit:
        assert difference(forced(unsplit), forced(llm)) < 0.02
        assert unsplit.plan.kv_dom_bytes == 0 < llm.plan.kv_dom_bytes


def ask(llm: Llama, question: demo.Question) -> Completion:
    """The question about the first third of the demo text, about 4,000 tokens with all that it needs."""
    text = demo.text()
    facts = [s for s in re.findall(r"[^.]*\.", text) if question.answer.rstrip(".") in s]
    message = f"{demo.INTRODUCTION}\n\n{text[:13000]} {''.join(facts)} {text[13000:14500]}\n\n{question.text}"
    return llm.chat([{"role": "user", "content": message}], stream=False, temperature=0, max_tokens=40)


@pytest.mark.slow
def test_fasa_answers_with_a_fraction_of_the_bytes(llm: Llama) -> None:
    for question in demo.QUESTIONS[:3]:
        llm.set_method("full")
        dense = ask(llm, question)
        llm.set_method("fasa")
        sparse = ask(llm, question)
        assert 3000 < dense.usage.prompt_tokens < 6000
        assert sparse.usage.reused_tokens >= dense.usage.prompt_tokens - FEW
        assert dense.text.strip() == sparse.text.strip() == question.answer
        n, m = dense.sparsity, sparse.sparsity
        assert (n.layers_sparse, n.layers_dense, n.tokens_selected) == (0, 8 * n.n_steps, 0)
        assert (m.layers_sparse, m.layers_dense, m.n_steps) == (7 * m.n_steps, m.n_steps, n.n_steps)
        assert m.tokens_selected == 256 * 2 * m.layers_sparse
        assert m.kv_bytes_per_step < 0.4 * n.kv_bytes_per_step
        assert m.value_bytes < 0.2 * n.value_bytes


def test_counters_add_up(llm: Llama) -> None:
    """Bytes of a step: dominant keys of all cached tokens, whole keys and values of the selected ones [FASA §5]."""
    llm.set_method("fasa", n_fac=100, n_tip=16, dense_below=0)
    result = complete(llm, LONG, 3)
    s = result.sparsity
    cached = [len(LONG) + 1, len(LONG) + 2]
    row = 2 * 2 * 128  # bytes of one token's keys, or values, in one layer: KV heads x dims x half precision
    assert s.n_steps == 2 == result.timings.decode_tokens
    assert s.value_bytes == sum(n * row + 7 * 100 * row for n in cached)
    assert s.key_bytes == sum(n * row + 7 * (n * row // 4 + 100 * row) for n in cached)
    assert s.tokens_selected_per_layer == 200 and s.layers_sparse_per_step == 7 and s.layers_dense_per_step == 1
    assert s.kv_bytes_per_step == (s.key_bytes + s.value_bytes) / 2
    nothing = complete(llm, LONG, 1).sparsity
    assert (nothing.n_steps, nothing.kv_bytes_per_step, nothing.tokens_selected_per_layer) == (0, 0, 0)


def test_a_share_of_the_tokens(llm: Llama) -> None:
    llm.set_method("fasa", n_fac=0.1, dense_below=0)
    assert llm.method.n_fac == 0.1
    selected = complete(llm, LONG, 2).sparsity.tokens_selected_per_layer
    assert selected == 2 * 151  # of 1,501 cached tokens, for each of two KV heads


def test_short_contexts_stay_dense(llm: Llama) -> None:
    resolved = llm.set_method("fasa")
    assert resolved.dense_below is not None and resolved.dense_below >= 256
    limit = 700
    llm.set_method("fasa", dense_below=limit)
    short = complete(llm, LONG[: limit - 2], 3).sparsity
    longer = complete(llm, LONG[:limit], 3).sparsity
    assert short.layers_sparse == 0 < longer.layers_sparse


def test_the_method_can_be_switched_back_and_forth(llm: Llama) -> None:
    sharp: dict[str, Any] = {"n_fac": 40, "dense_layers": 0, "dense_below": 0}
    llm.reset()
    results: list[Completion] = []
    for name in ("full", "fasa", "full", "oracle", "fasa"):
        assert llm.set_method(name, **sharp) == llm.method
        assert llm.method.name == name
        results.append(complete(llm, LONG))
    assert results[0].usage.reused_tokens == 0
    assert all(r.usage.reused_tokens >= len(LONG) - FEW for r in results[1:])
    assert results[0].tokens == results[2].tokens
    assert results[1].tokens == results[4].tokens
    assert results[0].tokens != results[1].tokens
    assert [r.sparsity.layers_sparse > 0 for r in results] == [False, True, False, True, True]
    before = llm.method
    with pytest.raises(ValueError, match="n_tip"):
        llm.set_method("fasa", n_tip=1000)
    assert llm.method == before
    assert complete(llm, LONG).tokens == results[4].tokens


def test_not_within_an_open_stream(llm: Llama) -> None:
    llm.set_method("full")
    with llm.generate(LONG, stream=True, max_tokens=20) as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="open stream"):
            llm.set_method("fasa")
    assert llm.method.name == "full"


def test_streams_count_too(llm: Llama) -> None:
    llm.set_method("fasa")
    whole = complete(llm, LONG, 12)
    with llm.generate(LONG, stream=True, max_tokens=12, temperature=0) as stream:
        assert "".join(stream) == whole.text
    assert stream.completion is not None and stream.completion.sparsity == whole.sparsity
    with llm.generate(LONG, stream=True, max_tokens=12, temperature=0) as stream:
        next(stream)
    assert stream.completion is not None
    assert stream.completion.sparsity.n_steps == stream.completion.timings.decode_tokens < 11


# -- cache: prefixes, saved states, threads ------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("kv", ["device", "split"])
def test_prefix_reuse_changes_nothing(kv: str) -> None:
    method = Method("fasa", n_fac=64, dense_layers=0, dense_below=0)
    with Llama(n_ctx=2000, table=made_up_table(), kv=kv, method=method) as llm:
        fresh = complete(llm, LONG)
        longer = complete(llm, [*LONG, *fresh.tokens])
        assert longer.usage.reused_tokens >= len(LONG) + len(fresh.tokens) - FEW
        branch = complete(llm, [*LONG[:1000], 7, *LONG[1001:]])
        assert branch.usage.reused_tokens == 1000
        llm.reset()
        assert complete(llm, [*LONG[:1000], 7, *LONG[1001:]]).tokens == branch.tokens
        assert complete(llm, LONG).tokens == fresh.tokens
        assert fresh.sparsity.layers_sparse == 23 * 8


@each_device
def test_a_saved_conversation_goes_on_sparse(tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_ctx": 2000, "table": made_up_table(), "method": "fasa", "n_fac": 64, "kv": "split"}
    path = tmp_path / "state"
    with Llama(**options) as llm:
        start = complete(llm, LONG)
        llm.save_state(path)
        expected = complete(llm, [*LONG, *start.tokens], logprobs=0)
    with Llama(**options) as llm:
        llm.load_state(path)
        result = complete(llm, [*LONG, *start.tokens], logprobs=0)
    assert result.usage.reused_tokens == expected.usage.reused_tokens > len(LONG)
    assert result.tokens == expected.tokens
    assert numbers(result) == numbers(expected)
    assert result.sparsity == expected.sparsity and result.sparsity.layers_sparse == 23 * 7


@each_device
def test_a_state_of_another_layout_is_refused(tmp_path: Path) -> None:
    """The rows of a split cache mean nothing without its order."""
    path = tmp_path / "state"
    with Llama(n_ctx=600, table=made_up_table(), method="fasa") as llm:
        llm.logits(LONG[:500])
        llm.save_state(path)
    for other in (
        {"method": "full"},
        {"table": made_up_table(1)},
        {"table": made_up_table(), "n_tip": 8},
        {"table": made_up_table(), "dense_layers": 2},
    ):
        with (
            Llama(n_ctx=600, **({"method": "fasa"} | other)) as llm,
            pytest.raises(FormatError, match="another layout"),
        ):
            llm.load_state(path)


def test_several_threads(llm: Llama) -> None:
    llm.set_method("fasa", n_fac=64)
    prompts = [LONG[100 * i : 100 * i + 1100] for i in range(4)]
    expected = [complete(llm, prompt, 12) for prompt in prompts]
    results: dict[int, Completion] = {}

    def work(i: int) -> None:
        results[i] = complete(llm, prompts[i], 12)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert results[i].tokens == expected[i].tokens
        assert results[i].sparsity == expected[i].sparsity


@each_device
def test_several_sequences() -> None:
    with Llama(n_ctx=2000, n_seq=2, table=made_up_table(), method="fasa", n_fac=64) as llm:
        first, second = complete(llm, LONG), complete(llm, LONG[::-1])
        again = complete(llm, LONG)
        assert again.usage.reused_tokens >= len(LONG) - FEW
        assert again.tokens == first.tokens != second.tokens
        assert complete(llm, LONG[::-1]).tokens == second.tokens


@each_device
def test_half_split_models(tmp_path: Path) -> None:
    """Chunks of dims i and i + n_rot / 2: a cache split by them gives what the whole keys give."""
    path = write(tmp_path / "qwen.gguf", TinyModel(arch="qwen3", n_vocab=270, vocabulary=True, seed=2))
    rng = np.random.default_rng(0)
    with Llama(path) as llm:
        shape = (llm.info.n_layer, llm.info.n_head, llm.info.head_dim // 2)
        assert llm.info.rope_layout == "half_split"
    table = SimpleNamespace(ca=rng.random(shape), order=None, criterion="ca")
    sharp: dict[str, Any] = {"n_fac": 30, "n_tip": 3, "n_recent": 4, "dense_layers": 0, "dense_below": 0}
    prompt = [(7 * i) % 256 for i in range(180)]
    with Llama(path, table=table, method=Method("fasa", **sharp)) as split:
        expected = complete(split, prompt)
        assert split.plan.kv_dom_bytes > 0
    with Llama(path, table=table, method="full") as unsplit:
        unsplit.set_method("fasa", **sharp)
        assert unsplit.plan.kv_dom_bytes == 0
        assert complete(unsplit, prompt).tokens == expected.tokens
    assert expected.sparsity.layers_sparse > 0


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_shows_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(demo.text()[:9000], encoding="utf-8")
    arguments = ["generate", "-f", str(prompt), "-n", "4", "--temp", "0", "-c", "4000", "-v"]
    texts = []
    for options, expected in (
        (["--method", "full"], r"attention: full; a token: 0 of 8 layers sparse, \d+\.\d MiB of KV cache read"),
        (
            ["--method", "fasa", "--n-tip", "8", "--n-fac", "64", "--n-sink", "2", "--n-recent", "8",
             "--dense-layers", "2", "--criterion", "ca", "--kv", "split"],
            r"fasa \(n_fac 64, n_tip 8, criterion ca, n_sink 2, n_recent 8, dense_layers 2\); a token: 6 of 8 layers",
        ),
        (["--method", "fasa", "--n-fac", "0.2", "--paper"], r"n_fac 0\.2, .* chunks head, tokens head\); .* 8 of 8"),
        (["--method", "streaming", "--granularity", "head"], r"streaming \(n_fac 256, chunks head, tokens head\)"),
    ):  # fmt: skip
        assert cli.main([*arguments, *options]) == 0
        out, err = capsys.readouterr()
        assert re.search(expected, err), err
        texts.append(out)
    assert all(texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "nosuch"], "method must be one of auto, full, fasa"),
        (["--n-fac", "1.5"], "n_fac must be between 0 and 1"),
        (["--n-tip", "100"], "n_tip"),
        (["--kv", "far"], "kv must be one of"),
        (["--kv", "split", "--paper"], "sets per query head"),
    ],
)
def test_the_command_refuses(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "x", "-c", "64", *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert message in err
    assert fasa_py.Method is Method
