"""Files that are well-formed GGUF but no sound model: each is refused with an error that names the place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import each_device
from engine import Engine
from gguf import GGUFReader
from tiny_models import ARCHS, TYPES, TinyModel, tensors, write

import fasa_py
from fasa_py._native import ffi, lib, text
from fasa_py.errors import ContextFullError, FasaError, FormatError, OutOfMemoryError, UnsupportedError

NAN, INF = math.nan, math.inf


def refused(path: Path, kind: type[FasaError], *names: str) -> None:
    """Loading must fail with ``kind`` and name the file and every one of ``names``."""
    with pytest.raises(kind) as error:
        Engine(path, n_ctx=8)
    for name in (path.name, *names):
        assert name in str(error.value)


TENSORS = [(arch, name) for arch in ARCHS for name in tensors(TinyModel(arch=arch)) if name != "output.weight"]


@pytest.mark.parametrize(("arch", "name"), TENSORS)
def test_missing_tensor(tmp_path: Path, arch: str, name: str) -> None:
    refused(write(tmp_path / "model.gguf", TinyModel(arch=arch), weights={name: None}), FormatError, name)


@pytest.mark.parametrize(("arch", "name"), [*TENSORS, ("llama", "output.weight"), ("llama", "rope_freqs.weight")])
@pytest.mark.parametrize("change", ["longer", "shorter", "transposed", "deeper", "empty"])
def test_wrong_shape(tmp_path: Path, arch: str, name: str, change: str) -> None:
    model = TinyModel(arch=arch, rope="freqs")
    data, dtype = tensors(model)[name]
    if change == "transposed" and (data.ndim == 1 or data.shape[0] == data.shape[1]):
        change = "longer"
    wrong = {
        "longer": np.concatenate([data, data[:1]]),
        "shorter": data[:-1],
        "transposed": np.ascontiguousarray(data.T),
        "deeper": np.stack([data, data]),
        "empty": data[:0],
    }[change]
    refused(write(tmp_path / "model.gguf", model, weights={name: (wrong, dtype)}), FormatError, name)


COUNTS = {
    "block_count": (0, -1, 1 << 31, 0xFFFFFFFF),
    "context_length": (0, -1, 1 << 31, 0xFFFFFFFF),
    "embedding_length": (0, -1, 1 << 31, 0xFFFFFFFF, 83, 85),
    "feed_forward_length": (0, -1, 1 << 31, 0xFFFFFFFF, 74),
    "attention.head_count": (0, -1, 1 << 31, 0xFFFFFFFF, 3, 5, 8),
    "attention.head_count_kv": (0, -1, 1 << 31, 0xFFFFFFFF, 3, 8),
    "attention.key_length": (0, -1, 1 << 31, 0xFFFFFFFF, 10),
    "rope.dimension_count": (0, -1, 1 << 31, 0xFFFFFFFF, 13, 22),
    "rope.scaling.original_context_length": (0, -1, 1 << 31),
}
NUMBERS = {
    "attention.layer_norm_rms_epsilon": (NAN, INF, -INF, 0.0, -1e-5),
    "rope.freq_base": (NAN, INF, -INF, 0.0, -10000.0),
    "rope.scaling.factor": (NAN, INF, -INF, 0.0, -2.0),
    "rope.scaling.attn_factor": (NAN, INF, 0.0, -1.0),
    "rope.scaling.yarn_beta_fast": (NAN, INF, 0.0, -1.0),
    "rope.scaling.yarn_beta_slow": (NAN, INF, 0.0, -1.0),
}
HYPER = [(key, value) for group in (COUNTS, NUMBERS) for key, values in group.items() for value in values]
REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon")  # fmt: skip


@pytest.mark.parametrize(("key", "value"), HYPER)
def test_wrong_number(tmp_path: Path, key: str, value: Any) -> None:
    refused(write(tmp_path / "model.gguf", TinyModel(rope="yarn"), meta={f"llama.{key}": value}), FormatError)


@pytest.mark.parametrize("key", [*COUNTS, *NUMBERS])
@pytest.mark.parametrize("value", ["many", [1, 2], True], ids=["string", "array", "bool"])
def test_number_of_the_wrong_type(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(rope="yarn"), meta={f"llama.{key}": value})
    refused(path, FormatError, f"llama.{key}")


@pytest.mark.parametrize("value", [1, [1, 2], ["yarn"], True])
def test_rope_type_that_is_no_string(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(), meta={"llama.rope.scaling.type": value})
    refused(path, FormatError, "llama.rope.scaling.type")


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_number(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(), meta={f"llama.{key}": None})
    refused(path, FormatError, f"llama.{key}")


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    meta = {"llama.attention.key_length": None, "llama.attention.head_count": 5}
    refused(write(tmp_path / "model.gguf", TinyModel(), meta=meta), FormatError, "head_count")


def test_key_heads_that_the_weights_do_not_have(tmp_path: Path) -> None:
    meta = {"llama.attention.key_length": 22, "llama.attention.value_length": 22}
    refused(write(tmp_path / "model.gguf", TinyModel(), meta=meta), FormatError, "blk.0.attn_q.weight")


def test_more_layers_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(), meta={"llama.block_count": 3})
    refused(path, FormatError, "blk.2.attn_norm.weight")


@pytest.mark.parametrize(
    ("arch", "shown"),
    [("gemma2", '"gemma2"'), ("LLAMA", '"LLAMA"'), ("llama\n", '"llama\\x0a"'), ("x" * 300, "x" * 30)],
)
def test_unknown_architecture(tmp_path: Path, arch: str, shown: str) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(), arch=arch)
    refused(path, UnsupportedError, shown, "llama, qwen2, qwen3")


def test_no_architecture(tmp_path: Path) -> None:
    refused(write(tmp_path / "model.gguf", TinyModel(), arch=""), FormatError, "general.architecture")


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"llama.rope.scaling.type": "longrope"}, ["longrope", "yarn"]),
        ({"llama.expert_count": 8}, ["llama.expert_count"]),
        ({"llama.attention.value_length": 24}, ["24", "20"]),
        ({"llama.rope.scaling.yarn_attn_factor": 1.5}, ["llama.rope.scaling.yarn_attn_factor", "1.5"]),
        ({"llama.attention.causal": False}, ["llama.attention.causal", "false"]),
        ({"llama.attention.scale": 0.25}, ["llama.attention.scale", "0.25"]),
        ({"llama.attention.scale": 20**-0.5 * 1.0001}, ["llama.attention.scale", "0.22"]),
    ],
)
def test_unsupported_feature(tmp_path: Path, meta: dict[str, Any], names: list[str]) -> None:
    refused(write(tmp_path / "model.gguf", TinyModel(), meta=meta), UnsupportedError, *names)


@each_device
def test_unsupported_yarn(tmp_path: Path) -> None:
    key = "llama.rope.scaling.yarn_log_multiplier"
    path = write(tmp_path / "model.gguf", TinyModel(rope="yarn"), meta={key: 0.1})
    refused(path, UnsupportedError, key, "0.1")
    with Engine(write(tmp_path / "plain.gguf", TinyModel(), meta={key: 0.1}), n_ctx=8) as engine:
        assert np.isfinite(engine.decode([1, 2, 3])).all()


@each_device
@pytest.mark.parametrize("scale", [0.0, 20**-0.5])
def test_values_that_change_nothing(tmp_path: Path, scale: float) -> None:
    meta = {
        "llama.rope.scaling.yarn_attn_factor": 1.0,
        "llama.rope.scaling.yarn_log_multiplier": 0.0,
        "llama.attention.causal": True,
        "llama.attention.scale": scale,
    }
    model = TinyModel(rope="yarn")
    with Engine(write(tmp_path / "plain.gguf", model), n_ctx=8) as engine:
        expected = engine.decode([1, 2, 3])
    with Engine(write(tmp_path / "model.gguf", model, meta=meta), n_ctx=8) as engine:
        np.testing.assert_array_equal(engine.decode([1, 2, 3]), expected)


@pytest.mark.parametrize(("window", "warned"), [(0, False), (16, True), (1 << 20, False)])
def test_sliding_window_is_ignored_with_a_warning(tmp_path: Path, window: int, warned: bool) -> None:
    texts: list[str] = []

    @ffi.callback("fasa_log_fn")
    def sink(level: int, message: object, _user: object) -> None:
        if level == lib.FASA_LOG_WARN:
            texts.append(text(message))

    key = "llama.attention.sliding_window"
    path = write(tmp_path / "model.gguf", TinyModel(), meta={key: window})
    lib.fasa_log_set(sink, ffi.NULL)
    try:
        with Engine(path, n_ctx=8) as engine:
            assert np.isfinite(engine.decode([1, 2, 3])).all()
    finally:
        lib.fasa_log_set(ffi.NULL, ffi.NULL)
    assert [key in message and str(window) in message for message in texts] == [True] * warned


@pytest.mark.parametrize(
    "name", ["output.bias", "blk.0.attn_sinks.weight", "blk.1.ffn_gate_inp.weight", "blk.2.attn_q.weight"]
)
def test_tensor_that_the_forward_pass_would_ignore(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", TinyModel(), weights={name: (np.ones(131, np.float32), "F32")})
    refused(path, UnsupportedError, name)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_rope_factors(tmp_path: Path, value: float) -> None:
    factors = np.array([value, *np.ones(9)], np.float32), "F32"
    path = write(tmp_path / "model.gguf", TinyModel(), weights={"rope_freqs.weight": factors})
    refused(path, FormatError, "rope_freqs.weight")


def test_vocabulary_and_embedding_disagree(tmp_path: Path) -> None:
    model = TinyModel(vocabulary=True, n_vocab=300)
    rows = np.zeros((301, model.sized().n_embd), np.float32), "F32"
    weights = {"token_embd.weight": rows, "output.weight": rows}
    refused(write(tmp_path / "model.gguf", model, weights=weights), FormatError, "tokenizer.ggml.tokens", "300", "301")
    bare = write(tmp_path / "bare.gguf", TinyModel(), meta={"llama.vocab_size": 132})
    refused(bare, FormatError, "llama.vocab_size", "132", "131")


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "eot_token_id"])
@pytest.mark.parametrize("token", [300, -1, 0xFFFFFFFF])
def test_special_token_outside_the_vocabulary(tmp_path: Path, key: str, token: int) -> None:
    model = TinyModel(vocabulary=True, n_vocab=300)
    path = write(tmp_path / "model.gguf", model, meta={f"tokenizer.ggml.{key}": token})
    with pytest.raises(FormatError, match=f"tokenizer.ggml.{key}.*{token}"):
        fasa_py.Llama(path, n_ctx=16)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write(tmp_path / "sound.gguf", TinyModel())


@each_device
@pytest.mark.parametrize("token", [-1, 131, -(1 << 31), (1 << 31) - 1])
def test_token_out_of_range_leaves_the_context_usable(sound: Path, token: int) -> None:
    with Engine(sound, n_ctx=16) as engine:
        engine.decode([1, 2, 3])
        expected = engine.decode([4])
        engine.truncate(3)
        with pytest.raises(ValueError, match=str(token)):
            engine.decode([4, token])
        engine.truncate(3)
        np.testing.assert_allclose(engine.decode([4]), expected, rtol=1e-5, atol=1e-5)


@each_device
def test_context_full_names_both_numbers(sound: Path) -> None:
    with Engine(sound, n_ctx=16) as engine:
        engine.decode([1] * 10)
        with pytest.raises(ContextFullError, match=r"10 .*7 .*16"):
            engine.decode([1] * 7)
        assert engine.length() == 10
        engine.decode([1] * 6)
        assert engine.length() == 16


@each_device
def test_context_larger_than_memory(tmp_path: Path) -> None:
    model = TinyModel(n_layer=5, n_head_kv=4, head_dim=256)  # 20 KiB of KV a token: 5.5 TB
    with pytest.raises(OutOfMemoryError):
        Engine(write(tmp_path / "model.gguf", model), n_ctx=1 << 28)


@each_device
@pytest.mark.parametrize(
    "limits", [{"n_ctx": -1}, {"n_ctx": (1 << 31) - 1}, {"n_batch": -1}, {"n_seq": -1}, {"n_seq": (1 << 31) - 1}]
)
def test_senseless_limits(sound: Path, limits: dict[str, int]) -> None:
    with pytest.raises((ValueError, OutOfMemoryError)):
        Engine(sound, **{"n_ctx": 16, **limits})


@pytest.mark.parametrize("seq", [-1, 1, 1 << 30])
def test_sequence_out_of_range(sound: Path, seq: int) -> None:
    with Engine(sound, n_ctx=16) as engine:
        with pytest.raises(ValueError, match=str(seq)):
            engine.decode([1], seq)
        with pytest.raises(ValueError, match=str(seq)):
            engine.truncate(0, seq)


@pytest.mark.parametrize("n_tokens", [-1, 3])
def test_truncate_out_of_range(sound: Path, n_tokens: int) -> None:
    with Engine(sound, n_ctx=16) as engine:
        engine.decode([1, 2])
        with pytest.raises(ValueError, match=str(n_tokens)):
            engine.truncate(n_tokens)
        assert engine.length() == 2


def test_decode_of_nothing(sound: Path) -> None:
    with Engine(sound, n_ctx=16) as engine, pytest.raises(ValueError):
        engine.decode([])


@each_device
@pytest.mark.parametrize("dtype", TYPES)
def test_weights_of_random_bits_do_no_harm(tmp_path: Path, dtype: str) -> None:
    """NaN, infinite and huge scales everywhere: the logits are no numbers, and that is all."""
    model, rng = TinyModel(dtype=dtype, n_layer=1), np.random.default_rng(7)
    weights = {
        name: (np.frombuffer(rng.bytes(data.nbytes), data.dtype).reshape(data.shape), kind)
        for name, (data, kind) in tensors(model).items()
    }
    with Engine(write(tmp_path / "model.gguf", model, weights=weights), n_ctx=64, n_batch=16) as engine:
        assert engine.decode([1, 2, 3] * 7).shape == (model.n_vocab,)
        assert engine.decode([4]).shape == (model.n_vocab,)
        assert engine.length() == 22


@pytest.mark.parametrize(
    "model", [TinyModel(rope="yarn", n_layer=1), TinyModel("qwen3", "Q4_K", n_layer=1, n_vocab=33)]
)
def test_any_damaged_header_byte_is_refused_or_harmless(tmp_path: Path, model: TinyModel) -> None:
    """Every byte before the tensor data, changed in two ways: a typed error, or a model that still computes."""
    path = write(tmp_path / "model.gguf", model)
    n_header = min(int(t.data_offset) for t in GGUFReader(path).tensors)
    rng, outcomes = np.random.default_rng(5), {"refused": 0, "computed": 0}
    for at in range(n_header):
        for flip in (1 << int(rng.integers(8)), int(rng.integers(1, 256))):
            with path.open("r+b") as file:
                file.seek(at)
                original = file.read(1)
                file.seek(at)
                file.write(bytes([original[0] ^ flip]))
            try:
                with Engine(path, n_ctx=8, n_threads=1) as engine:
                    logits = engine.decode([1, 2, 3])
                    assert logits.shape == (model.n_vocab,)
                outcomes["computed"] += 1
            except (FormatError, UnsupportedError):
                outcomes["refused"] += 1
            with path.open("r+b") as file:
                file.seek(at)
                file.write(original)
    assert outcomes["refused"] > n_header // 2
    assert outcomes["computed"] > 0
