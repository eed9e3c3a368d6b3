"""Calibration: against NumPy in float64 on tiny models, its table in a file, and the tool."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf_maker
import numpy as np
import pytest
from devices import each_device
from gguf import GGUFReader
from tiny_models import TinyModel, write

import fasa_py
from fasa_py import demo
from fasa_py._native import check, lib
from fasa_py.calibration import CalibrationTable, calibrate, tensor_sha256
from fasa_py.calibration_native import best_by_ca, native_calibrate
from fasa_py.calibration_text import default_samples, default_text
from fasa_py.eval.inside import read_keys, read_tapped
from fasa_py.gguf_writer import check_copy, copy_with_metadata
from fasa_py.method import Method
from fasa_py.model import Context, ContextSettings, Model, ModelInfo

TOOL = Path(__file__).parents[2] / "tools" / "calibrate_to_gguf.py"
K = 16
BARE = {"k": K, "n_fac": K, "n_sink": 0, "n_recent": 0}

MODELS = {
    "interleaved": TinyModel(arch="llama", seed=1),
    "half split": TinyModel(arch="qwen2", seed=2),
    "partial rotary": TinyModel(arch="llama", n_rot=12, seed=3),
    "one group": TinyModel(arch="qwen3", n_head=3, n_head_kv=1, seed=4),
}


@contextmanager
def recorded(
    path: Path, lengths: list[int], n_steps: int, n_threads: int = 2, seed: int = 0
) -> Iterator[tuple[Context, ModelInfo]]:
    """A context with one sequence of random tokens a length, each followed by recorded decode steps."""
    rng = np.random.default_rng(seed)
    with fasa_py.GGUF(path) as gguf:
        model = Model(gguf, n_threads=n_threads)
        settings = ContextSettings(max(lengths) + n_steps, 0, len(lengths), Method("full"))
        with closing(Context(model, settings)) as context:
            check(lib.fasa_tap_start(context._handle, n_steps * len(lengths)))
            for seq, length in enumerate(lengths):
                context.decode(seq, rng.integers(0, model.info.n_vocab, length).tolist())
                for token in rng.integers(0, model.info.n_vocab, n_steps).tolist():
                    context.decode(seq, [token])
            yield context, model.info


def chunk_dims(info: ModelInfo, layout: str | None = None) -> list[list[int]]:
    """Dims of every chunk, as GGUF's architectures pair them."""
    half = info.n_rot // 2
    interleaved = (layout or info.rope_layout) == "interleaved"
    pairs = [[2 * i, 2 * i + 1] if interleaved else [i, i + half] for i in range(half)]
    return pairs + [[dim] for dim in range(info.n_rot, info.head_dim)]


def top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:k]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


class Reference:
    """One layer and KV head of the recorded steps that are long enough, in float64."""

    def __init__(self, context: Context, info: ModelInfo, layer: int, head_kv: int, longer_than: int) -> None:
        self.info, self.dims = info, chunk_dims(info)
        group = info.n_head // info.n_head_kv
        self.heads = range(head_kv * group, (head_kv + 1) * group)
        self.steps: list[tuple[np.ndarray, np.ndarray]] = []  # queries (group, head_dim), keys (n_pos, head_dim)
        for step in range(lib.fasa_tap_steps(context._handle)):
            tapped = read_tapped(context, info, step, layer)
            if tapped.n_pos > longer_than:
                keys = read_keys(context, info, tapped.seq, layer, head_kv, tapped.n_pos)
                self.steps.append((tapped.q[list(self.heads)].astype(np.float64), keys.astype(np.float64)))

    def ca(self, k: int) -> np.ndarray:
        """(group, n_chunk)"""
        total = np.zeros((len(self.heads), len(self.dims)))
        for queries, keys in self.steps:
            for h, q in enumerate(queries):
                best = top(keys @ q, k)
                for chunk, dims in enumerate(self.dims):
                    total[h, chunk] += len(np.intersect1d(best, top(keys[:, dims] @ q[dims], k))) / k
        return total / len(self.steps)

    def mass(
        self, chunks: list[int], n_fac: int, n_sink: int = 0, n_recent: int = 0, head: int | None = None,
        dims_of: list[list[int]] | None = None,
    ) -> float:  # fmt: skip
        """Attention on the positions that a set of chunks ranks best; head: of one query head instead of the group,
        at fewer steps, as the engine has it."""
        dims = [dim for chunk in chunks for dim in (dims_of or self.dims)[chunk]]
        total = 0.0
        steps = self.steps if head is None else self.steps[:: len(self.heads)]
        for queries, keys in steps:
            queries = queries if head is None else queries[head : head + 1]
            attention = np.mean([softmax(keys @ q / np.sqrt(self.info.head_dim)) for q in queries], axis=0)
            scores = keys[:, dims] @ queries[:, dims].sum(axis=0)
            scores[:n_sink] = np.inf
            scores[len(scores) - n_recent :] = np.inf
            total += attention[top(scores, n_fac)].sum()
        return total / len(steps)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("calibration")
    return {name: write(folder / f"{i}.gguf", model) for i, (name, model) in enumerate(MODELS.items())}


@each_device
@pytest.mark.parametrize("name", MODELS)
def test_agreement_equals_numpy(name: str, models: dict[str, Path]) -> None:
    with recorded(models[name], [61, 97], 3) as (context, info):
        ca, order, order_head, n_steps = native_calibrate(context, info, K, K, 0, 0, by_mass=False)
        assert (order, order_head, n_steps) == (None, None, 6)
        for layer in range(info.n_layer):
            for head_kv in range(info.n_head_kv):
                reference = Reference(context, info, layer, head_kv, K)
                found = ca[layer, list(reference.heads)]
                # One position in one step may be a near tie.
                np.testing.assert_allclose(found, reference.ca(K), atol=1.01 / (K * n_steps))
        assert 0.05 < ca.mean() < 0.95


@each_device
@pytest.mark.parametrize("forced", [(0, 0), (2, 5)])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_are_chosen_greedily_by_mass(name: str, forced: tuple[int, int], models: dict[str, Path]) -> None:
    with recorded(models[name], [55, 73], 3) as (context, info):
        _, order, order_head, _ = native_calibrate(context, info, K, K, *forced)
        assert order is not None and order_head is not None
        n_chunk = order.shape[2]
        assert (np.sort(order) == np.arange(n_chunk)).all() and (np.sort(order_head) == np.arange(n_chunk)).all()
        for head_kv in range(info.n_head_kv):
            reference = Reference(context, info, 1, head_kv, K)
            rows = [(order[1, head_kv], None), *((order_head[1, h], i) for i, h in enumerate(reference.heads))]
            for row, head in rows:
                chosen: list[int] = []
                for chunk in row.tolist():
                    left = [c for c in range(n_chunk) if c not in chosen]
                    masses = {c: reference.mass([*chosen, c], K, *forced, head=head) for c in left}
                    assert masses[chunk] > max(masses.values()) - 1e-5
                    chosen.append(chunk)


@each_device
def test_chunks_after_the_jointly_chosen_follow_by_agreement(tmp_path: Path) -> None:
    path = write(tmp_path / "wide.gguf", TinyModel(head_dim=80, n_rot=40, n_head=2, n_head_kv=1, n_layer=1))
    with recorded(path, [60], 2) as (context, info):
        ca, order, _, _ = native_calibrate(context, info, K, K, 0, 0)
        assert order is not None and order.shape[2] == 60
        mean = ca[0].mean(axis=0)[order[0, 0, 32:]]
        assert (np.diff(mean) <= 1e-6).all()


@each_device
def test_steps_that_are_too_short_are_left_out(models: dict[str, Path]) -> None:
    with recorded(models["interleaved"], [14, 40], 4) as (context, info):
        ca, _, _, n_steps = native_calibrate(context, info, K, K, 0, 0, by_mass=False)
        assert n_steps == 6, "steps at 15 and 16 positions say nothing about the best 16"
        assert native_calibrate(context, info, K, K, 0, 0, by_mass=False, seq=1)[3] == 4
        assert native_calibrate(context, info, K, K, 0, 0, by_mass=False, max_steps=3)[3] == 3
        np.testing.assert_allclose(ca[0, :2], Reference(context, info, 0, 0, K).ca(K), atol=1.01 / (K * 6))
        with pytest.raises(ValueError, match="none of the 8 recorded decode steps has 45 cached positions"):
            native_calibrate(context, info, 44, K, 0, 0)
        with pytest.raises(ValueError, match="n_fac is 16, expected more than n_sink"):
            native_calibrate(context, info, K, 16, 10, 6)
        context.truncate(1, 20)
        with pytest.raises(ValueError, match="calibrate before truncating"):
            native_calibrate(context, info, K, K, 0, 0)


def test_result_does_not_depend_on_threads(models: dict[str, Path]) -> None:
    results = []
    for n_threads in (1, 2, 3, 2):
        with recorded(models["half split"], [61, 44], 3, n_threads) as (context, info):
            results.append(native_calibrate(context, info, K, K, 1, 3))
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], result, strict=True))


@each_device
def test_wrong_pairing_holds_less_mass() -> None:
    tokens = 900
    with fasa_py.GGUF(demo.model_path()) as gguf, fasa_py.Llama(n_ctx=64) as llm:
        model = Model(gguf)
        ids = llm.tokenize(default_text()[0])[:tokens]
        with closing(Context(model, ContextSettings(tokens + 8, method=Method("full")))) as context:
            check(lib.fasa_tap_start(context._handle, 8))
            context.decode(0, ids)
            for _ in range(8):
                context.decode(0, [int(context.logits.argmax())])
            _, order, _, _ = native_calibrate(context, model.info, 64, 64, 0, 0, per_head=False)
            assert order is not None
            wrong = chunk_dims(model.info, "half_split")
            held = {"right": 0.0, "wrong": 0.0}
            for layer in range(1, model.info.n_layer):
                for head_kv in range(model.info.n_head_kv):
                    reference, chunks = Reference(context, model.info, layer, head_kv, 64), order[layer, head_kv, :8]
                    held["right"] += reference.mass(chunks.tolist(), 64) / 14
                    held["wrong"] += reference.mass(chunks.tolist(), 64, dims_of=wrong) / 14
    assert held["wrong"] < held["right"] - 0.1


@each_device
def test_cancelled_by_progress(models: dict[str, Path]) -> None:
    class Stop(Exception):
        pass

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Stop

    with recorded(models["interleaved"], [61], 2) as (context, info):
        with pytest.raises(Stop):
            native_calibrate(context, info, K, K, 0, 0, progress=stop)
        assert native_calibrate(context, info, K, K, 0, 0)[3] == 2, "the context stays usable"


# -- from Python -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyModel(n_vocab=270, vocabulary=True, n_ctx=512, seed=8)
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf", model)


@pytest.fixture(scope="module")
def table(vocabulary_model: Path) -> CalibrationTable:
    text = "".join(chr(97 + i * i % 26) for i in range(400))
    return calibrate(vocabulary_model, text=text, source="letters", **BARE, n_steps=3, n_tip=3)


def test_table_says_how_it_was_made(table: CalibrationTable, vocabulary_model: Path) -> None:
    assert table.ca.shape == (2, 4, 10) and table.order is not None and table.order.shape == (2, 2, 10)
    assert (table.k, table.n_steps, table.n_samples, table.source) == (K, 3, 1, "letters")
    assert (table.criterion, table.chunk_layout, table.n_tip) == ("mass", "interleaved", 3)
    assert table.dominant(1, 0) == table.order[1, 0, :3].tolist()
    assert table.dominant(1, 0, 4, "ca") == np.argsort(-table.ca[1, :2].mean(axis=0), kind="stable")[:4].tolist()
    assert "CA_16 over 3 decode steps of 1 sample(s)" in table.report()
    with fasa_py.Llama(vocabulary_model, table=table, method="fasa", n_tip=3, n_fac=40) as llm:
        assert llm.method.name == "fasa" and llm.method.criterion == "mass"


@pytest.mark.parametrize("per_head", [True, False])
def test_default_criterion_is_the_tables_where_it_has_such_sets(per_head: bool, vocabulary_model: Path) -> None:
    table = calibrate(vocabulary_model, text="abcdefgh" * 60, **BARE, n_steps=2, per_head=per_head)
    with fasa_py.Llama(vocabulary_model, table=table, method="fasa", n_tip=3, granularity="head") as llm:
        assert llm.method.criterion == ("mass" if per_head else "ca")
        llm.set_method("fasa", n_tip=3)
        assert llm.method.criterion == "mass"


@each_device
def test_several_samples_and_prompts(vocabulary_model: Path) -> None:
    progress: list[float] = []
    by_text = calibrate(vocabulary_model, text="abcdefgh" * 60, **BARE, n_steps=2, n_samples=3, criterion="ca",
                        diagnostics=True, progress=progress.append)  # fmt: skip
    assert (by_text.n_samples, by_text.n_steps, by_text.order) == (3, 6, None)
    assert by_text.diagnostics is not None and by_text.diagnostics.overlap is not None
    assert 0 < by_text.diagnostics.overlap <= 1 and "overlap" in by_text.report()
    assert progress == sorted(progress) and progress[-1] == 1.0
    prompts = [list(range(100, 180)), "some text to go on with, and on and on"]
    by_prompts = calibrate(vocabulary_model, prompts=prompts, **BARE, n_steps=2)
    assert by_prompts.n_samples == 2 and by_prompts.source == "prompts"
    same = calibrate(vocabulary_model, prompts=prompts, **BARE, n_steps=2, n_threads=1)
    assert np.array_equal(by_prompts.ca, same.ca) and np.array_equal(by_prompts.order, same.order)


@each_device
def test_samples_that_begin_alike_are_read_as_if_each_were_alone(vocabulary_model: Path) -> None:
    begin = list(range(100, 180))
    prompts = [[*begin, *range(200, 230)], [*begin, *range(10, 30)], begin[:60]]
    together = calibrate(vocabulary_model, prompts=prompts, **BARE, n_steps=2, criterion="ca")
    alone = [calibrate(vocabulary_model, prompts=[p], **BARE, n_steps=2, criterion="ca").ca for p in prompts]
    np.testing.assert_allclose(together.ca, np.mean(alone, axis=0), atol=1e-6)


@each_device
def test_loaded_model_keeps_its_conversation(vocabulary_model: Path) -> None:
    with fasa_py.Llama(vocabulary_model) as llm:
        llm.generate("abc", max_tokens=4)
        before = llm.tokens
        assert calibrate(llm, text="hello " * 60, **BARE, n_steps=2).n_steps == 2
        assert llm.tokens == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "a", "prompts": ["b"]}, "not both"),
        ({"prompts": ["b"], "n_samples": 1}, "n_samples divides a text"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"criterion": "best"}, "criterion must be"),
        ({"k": 0}, "k must be"),
        ({"text": "abc" * 20}, "none of the 4 recorded decode steps has 257"),
        ({"prompts": []}, "at least one"),
        ({"prompts": [[]]}, r"prompts\[0\] is empty"),
        ({"prompts": ["abc", [1] * 510]}, r"prompts\[1\] has 510 tokens"),
        ({"n_tip": 100}, "n_tip must be"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str, vocabulary_model: Path) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(vocabulary_model, n_steps=1, **options)  # type: ignore[arg-type]


def test_default_text_is_a_conversation_where_there_is_a_template(vocabulary_model: Path) -> None:
    document, questions = default_text()
    assert len(document) > 25_000 and len(questions) >= 10
    with fasa_py.Llama(n_ctx=64) as llm:
        (sample,) = default_samples(llm, 1, 256)
        assert len(sample.turns) == len(questions) + 1 and sample.n_given > 8000
        text = llm.tokenizer.decode([token for turn in sample.turns for token in turn])
        assert all(question in text for question in questions)
        halves = default_samples(llm, 2, 256)
        assert sum(len(half.turns) for half in halves) == len(questions) + 2
    with fasa_py.Llama(vocabulary_model) as llm:  # no template, and a short context
        (sample,) = default_samples(llm, 1, 100)
        assert len(sample.turns) == 1 and sample.n_given == 412
        assert llm.tokenizer.decode(sample.turns[0]).endswith(f"Question: {questions[0]}\nAnswer:")


# -- files -----------------------------------------------------------------------------------------------------------


def test_copy_differs_in_the_table_alone(table: CalibrationTable, vocabulary_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    table.save(vocabulary_model, out)
    before, after = GGUFReader(vocabulary_model), GGUFReader(out)
    old = {key: field.contents() for key, field in before.fields.items() if not key.startswith("GGUF.")}
    new = {key: field.contents() for key, field in after.fields.items() if not key.startswith("GGUF.")}
    assert {key: value for key, value in new.items() if not key.startswith("fasa.")} == old
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert one.data.tobytes() == other.data.tobytes() and one.tensor_type == other.tensor_type
    assert new["fasa.version"] == 1 and new["fasa.n_tip"] == 3 and new["fasa.calibration.source"] == "letters"
    again = CalibrationTable.from_gguf(out)
    for field in dataclasses.fields(CalibrationTable):
        np.testing.assert_equal(getattr(again, field.name), getattr(table, field.name))
    with fasa_py.GGUF(out) as gguf, fasa_py.GGUF(vocabulary_model) as original:
        assert tensor_sha256(gguf) == tensor_sha256(original) == table.model_sha256
        assert all(tensor.offset % gguf.alignment == 0 for tensor in gguf.tensors)
    with fasa_py.Llama(out, n_fac=40) as llm, fasa_py.Llama(vocabulary_model) as plain:
        assert llm.method.name == "fasa"
        ids = list(range(97, 117))
        assert llm.generate(ids, max_tokens=12, temperature=0).tokens == (
            plain.generate(ids, max_tokens=12, temperature=0).tokens
        ), "nothing is left out while no more than n_fac positions are cached"


def test_an_older_table_is_replaced(table: CalibrationTable, vocabulary_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    table.save(vocabulary_model, first)
    dataclasses.replace(table, source="other", order=None, order_head=None, criterion="ca", n_tip=None).save(
        first, second
    )
    again = CalibrationTable.from_gguf(second)
    assert (again.source, again.order, again.n_tip) == ("other", None, None)
    table.save(second, first, force=True)
    assert first.read_bytes() != second.read_bytes()
    table.save(first, first, force=True)  # in place
    assert CalibrationTable.from_gguf(first).source == "letters"


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_any_alignment_is_kept(alignment: int, tmp_path: Path) -> None:
    maker = gguf_maker.small_model()
    maker.alignment = alignment
    maker.metadata[1] = ("general.alignment", gguf_maker.scalar(gguf_maker.U32, alignment))
    source, target = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(maker.build())
    copy_with_metadata(source, target, "fasa.", {"fasa.a": 7, "fasa.b": "text", "fasa.c": np.arange(5, dtype="u2")})
    with fasa_py.GGUF(source) as old, fasa_py.GGUF(target) as new:
        for tensor in old.tensors:
            assert bytes(new.tensor_data(tensor.name)) == bytes(old.tensor_data(tensor.name))
        assert new.alignment == alignment and all(tensor.offset % alignment == 0 for tensor in new.tensors)
        for key in old.metadata:
            np.testing.assert_equal(new.metadata[key], old.metadata[key])
        assert new.metadata["fasa.a"] == 7 and new.metadata["fasa.b"] == "text"
        assert new.metadata["fasa.c"].tolist() == list(range(5))  # type: ignore[union-attr]
    assert maker.build()[-100:] == target.read_bytes()[-100:]


def test_what_cannot_be_written_is_refused(
    table: CalibrationTable, vocabulary_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        table.save(vocabulary_model, out)
    assert out.read_bytes() == b"precious"
    other = write(tmp_path / "other.gguf", TinyModel(n_vocab=270, vocabulary=True, n_ctx=512, seed=9))
    with pytest.raises(fasa_py.FormatError, match="other weights"):
        table.save(other, tmp_path / "new.gguf")
    with pytest.raises(fasa_py.FormatError, match="carries no FASA table"):
        CalibrationTable.from_gguf(vocabulary_model)

    def interrupt(_fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.save(vocabulary_model, tmp_path / "new.gguf", progress=interrupt)
    full(monkeypatch)
    with pytest.raises(OSError, match="MiB left") as error:
        table.save(vocabulary_model, tmp_path / "new.gguf")
    assert error.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf", "out.gguf"]


def test_what_cannot_be_written_is_known_before(
    vocabulary_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.gguf"
    check_copy(vocabulary_model, out)
    assert not out.exists()
    with pytest.raises(OSError, match=r"missing\.gguf"):
        check_copy(tmp_path / "missing.gguf", out)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check_copy(vocabulary_model, tmp_path / "none" / "out.gguf")
    with pytest.raises(IsADirectoryError):
        check_copy(vocabulary_model, tmp_path, force=True)
    out.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        check_copy(vocabulary_model, out)
    check_copy(vocabulary_model, out, force=True)
    assert out.read_bytes() == b"precious"
    full(monkeypatch)
    with pytest.raises(OSError, match="MiB left") as error:
        check_copy(vocabulary_model, out, force=True)
    assert error.value.errno == errno.ENOSPC


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk has ten bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 0, 10))  # type: ignore[attr-defined]


def test_split_files_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        maker = gguf_maker.Maker()
        if i == 0:
            maker.add("general.architecture", gguf_maker.scalar(gguf_maker.STRING, "llama"))
        maker.add("split.no", gguf_maker.scalar(gguf_maker.U16, i)).add(
            "split.count", gguf_maker.scalar(gguf_maker.U16, 2)
        )
        maker.add("split.tensors.count", gguf_maker.scalar(gguf_maker.I32, 2))
        maker.add_tensor(gguf_maker.Tensor(f"t{i}", (4,), 0))
        (tmp_path / f"m-{i + 1:05}-of-00002.gguf").write_bytes(maker.build())
    for refused in (lambda *paths: copy_with_metadata(*paths, "fasa.", {}), check_copy):
        with pytest.raises(fasa_py.UnsupportedError, match="split into 2 files"):
            refused(tmp_path / "m-00001-of-00002.gguf", tmp_path / "out.gguf")


@pytest.mark.parametrize("key", ["fasa.ca_scores", "fasa.n_chunk", "fasa.criterion", "fasa.chunk_order"])
def test_damaged_tables_are_refused(key: str, table: CalibrationTable, vocabulary_model: Path, tmp_path: Path) -> None:
    values = table.metadata()
    values[key] = {"fasa.ca_scores": np.zeros(3, np.float32), "fasa.n_chunk": 3, "fasa.criterion": 5,
                   "fasa.chunk_order": "none"}[key]  # fmt: skip
    path = tmp_path / "damaged.gguf"
    copy_with_metadata(vocabulary_model, path, "fasa.", values)
    with pytest.raises(fasa_py.FormatError, match=r"fasa\."):
        CalibrationTable.from_gguf(path)
    with pytest.raises(fasa_py.FormatError):
        fasa_py.Llama(path)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"fasa.ca_scores": np.full(80, np.nan, np.float32)}, fasa_py.FormatError, "score 0 is nan"),
        ({"fasa.version": 2}, fasa_py.UnsupportedError, "version 2"),
        ({"fasa.version": None}, fasa_py.FormatError, r'"fasa\.version" is missing: calibrate again'),
    ],
)
def test_a_table_that_cannot_be_loaded_is_replaced(
    changes: dict[str, Any], kind: type[Exception], message: str, table: CalibrationTable, vocabulary_model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    path, out = tmp_path / "old.gguf", tmp_path / "new.gguf"
    values = {key: value for key, value in (table.metadata() | changes).items() if value is not None}
    copy_with_metadata(vocabulary_model, path, "fasa.", values)
    with pytest.raises(kind, match=message):
        fasa_py.Llama(path)
    anew = calibrate(path, text="abcdefgh" * 60, **BARE, n_steps=2)
    anew.save(path, out)
    with fasa_py.Llama(out) as llm:
        assert llm.method.name == "fasa"
    assert np.array_equal(CalibrationTable.from_gguf(out).ca, anew.ca)


def test_recommendations_that_are_not_followed_are_logged(
    table: CalibrationTable, vocabulary_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "advised.gguf"
    copy_with_metadata(vocabulary_model, path, "fasa.", table.metadata() | {"fasa.n_fac": 99, "fasa.dense_layers": 2})
    with fasa_py.Llama(path) as llm, fasa_py.Llama(vocabulary_model, table=table) as plain:
        assert llm.method == plain.method
    assert [record.message for record in caplog.records if "give n_fac=99, dense_layers=2" in record.message]


def test_calibrated_file_generates_the_same_in_llama_cpp(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    calibrated, texts = tmp_path / "calibrated.gguf", []
    table = calibrate(prompts=[default_text()[0][:1500]], k=64, n_fac=64, n_steps=2)
    table.save(demo.model_path(), calibrated)
    for path in (demo.model_path(), calibrated):
        llm = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, verbose=False)
        texts.append(llm("It was the best of times", max_tokens=24, temperature=0)["choices"][0]["text"])
    assert texts[0] == texts[1] and texts[0].strip()


def test_embedded_model_is_calibrated() -> None:
    table = CalibrationTable.from_gguf(demo.model_path())
    assert table.ca.shape == (8, 4, 64) and table.criterion == "mass" and table.source == "default"
    assert table.order is not None and table.order_head is not None
    # As in the paper: few chunks agree with their head, most say next to nothing about it.
    assert 0 < table.share_above(0.4) < 0.01 and 0.9 < 1 - table.share_above(0.15) < 0.97
    with fasa_py.GGUF(demo.model_path()) as gguf:
        assert tensor_sha256(gguf) == table.model_sha256
    fast = (np.asarray(table.order)[..., :16] < 28).mean()
    fast_by_ca = np.mean([best_by_ca(table.ca, layer, head, 2)[:16] < 28 for layer in range(8) for head in range(2)])
    assert fast > fast_by_ca, "chosen jointly, sets hold fast chunks, which see recent positions"


# -- the tool --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool():  # type: ignore[no-untyped-def]
    if not TOOL.exists():
        pytest.skip("the tool comes with the source repository only")
    spec = importlib.util.spec_from_file_location("calibrate_to_gguf", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_calibrates_reports_and_plots(  # type: ignore[no-untyped-def]
    tool, vocabulary_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    text, out, plot = tmp_path / "text.txt", tmp_path / "out.gguf", tmp_path / "plot.png"
    text.write_text("the quick brown fox " * 10, encoding="utf-8")
    command = [str(vocabulary_model), "-o", str(out), "--text", str(text), "--k", "16", "--steps", "2"]
    command += ["--samples", "1", "--n-tip", "3"]
    assert tool.main([*command, "--plot", str(plot), "--report"]) == 1
    assert "257" in capsys.readouterr().err, "mass is summed over 256 positions: the text is too short"
    text.write_text("the quick brown fox " * 100, encoding="utf-8")
    assert tool.main([*command, "--plot", str(plot), "--report"]) == 0
    printed = capsys.readouterr()
    assert "CA > 0.4" in printed.out and "found, by fifths" in printed.out and "calibrating" in printed.err
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = CalibrationTable.from_gguf(out)
    assert (table.source, table.k, table.n_steps, table.n_tip) == ("text.txt", 16, 2, 3)
    assert tool.main(command) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert tool.main([*command, "--force", "--criterion", "ca"]) == 0
    assert CalibrationTable.from_gguf(out).criterion == "ca"


def test_tool_reads_prompts(  # type: ignore[no-untyped-def]
    tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "Hello"}]
    lines = ["a text", [1, 2, 3], messages, {"prompt": "b"}, {"messages": messages}]
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert tool.read_prompts(path) == ["a text", [1, 2, 3], messages, "b", messages]
    path.write_text('"fine"\n{"neither": 1}\n', encoding="utf-8")
    assert tool.main(["missing.gguf", "-o", str(tmp_path / "o.gguf"), "--prompts", str(path)]) == 1
    assert "line 2" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "missing.gguf"), "-o", str(tmp_path / "o.gguf")]) == 1
    assert "missing.gguf" in capsys.readouterr().err and not (tmp_path / "o.gguf").exists()


def test_tool_refuses_before_it_calibrates(  # type: ignore[no-untyped-def]
    tool, vocabulary_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("it calibrates")

    monkeypatch.setattr(tool, "calibrate", never)
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.gguf"
    prompts.write_text('"a text"\n', encoding="utf-8")
    command = [str(vocabulary_model), "-o", str(out)]
    assert tool.main([*command, "--prompts", str(prompts), "--samples", "1"]) == 1
    assert "--samples divides a text" in capsys.readouterr().err
    assert tool.main([str(vocabulary_model), "-o", str(tmp_path / "none" / "out.gguf")]) == 1
    assert "no such folder" in capsys.readouterr().err
    out.touch()
    assert tool.main(command) == 1
    assert "--force replaces it" in capsys.readouterr().err
    full(monkeypatch)
    assert tool.main([*command, "--force"]) == 1
    assert "MiB left" in capsys.readouterr().err


def test_info_shows_the_table(
    table: CalibrationTable, vocabulary_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fasa_py.cli import main

    out = tmp_path / "out.gguf"
    table.save(vocabulary_model, out)
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "FASA table" in shown and "3 recommended" in shown and "by KV head and query head" in shown
    assert main(["info", str(vocabulary_model)]) == 0
    assert "FASA table" not in capsys.readouterr().out
