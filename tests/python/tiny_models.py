"""Maker of tiny random GGUF models: every architecture, tensor type and RoPE variant the engine supports.

The weights are scaled so that activations stay near one and attention is far from uniform; a wrong rotation, head
mapping or bias then changes the logits by much more than any rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

ARCHS = ("llama", "qwen2", "qwen3")
FLOAT_TYPES = ("F32", "F16", "BF16")
SIMPLE_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")  # blocks of 32 values
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")  # blocks of 256 values
TYPES = (*FLOAT_TYPES, *SIMPLE_TYPES, *K_TYPES)

# RoPE variants: metadata below "<arch>.rope." and whether a rope_freqs tensor is written.
ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"scaling.type": "linear", "scaling.factor": 2.5},
    "yarn": {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64},
    "yarn-tuned": {
        "scaling.type": "yarn",
        "scaling.factor": 8.0,
        "scaling.original_context_length": 128,
        "scaling.yarn_beta_fast": 16.0,
        "scaling.yarn_beta_slow": 2.0,
        "scaling.attn_factor": 0.8,
    },
    "freqs": {},
}


@dataclass(frozen=True)
class TinyModel:
    """What to write. Sizes of 0 are chosen: small, odd where the tensor type allows it, whole blocks elsewhere."""

    arch: str = "llama"
    dtype: str = "F32"
    rope: str = "plain"
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 0
    n_embd: int = 0
    n_ff: int = 0
    n_vocab: int = 131
    n_ctx: int = 256  # trained context
    n_rot: int = 0  # 0: head_dim
    tied: bool = False
    bias: bool | None = None  # QKV biases; None: as the architecture has them
    vocabulary: bool = False  # with a byte-level tokenizer; needs n_vocab >= 260
    seed: int = 0
    types: Mapping[str, str] = field(default_factory=dict)  # tensor name without ".weight" -> type, over dtype

    def sized(self) -> TinyModel:
        """The same model with every size filled in."""
        block = GGML_QUANT_SIZES[GGMLQuantizationType[self.dtype]][0]
        head_dim = self.head_dim or {1: 20, 32: 24, 256: 64}[block]
        n_embd = self.n_embd or {1: 84, 32: 96, 256: 256}[block]
        n_ff = self.n_ff or {1: 75, 32: 160, 256: 256}[block]
        bias = self.arch == "qwen2" if self.bias is None else self.bias
        return replace(self, head_dim=head_dim, n_embd=n_embd, n_ff=n_ff, n_rot=self.n_rot or head_dim, bias=bias)


def random_blocks(dtype: str, n_rows: int, n_in: int, rng: np.random.Generator, std: float) -> np.ndarray:
    """Random blocks of a quantised type: uint8 (n_rows, row_bytes), their values of mean ~0 and deviation ``std``.

    All bits are random except the f16 block scales, so every code point, sub-scale and minimum of the format occurs.
    """
    qtype = GGMLQuantizationType[dtype]
    block, size = GGML_QUANT_SIZES[qtype]
    raw = rng.integers(0, 256, (n_rows * n_in // block, size), dtype=np.uint8)
    scale, offset_at, offset_ratio = _block_scale(dtype)
    d = (rng.uniform(0.7, 1.3, len(raw)) * std / scale).astype(np.float16)
    _put_half(raw, _SCALE_AT[dtype], d)
    if offset_at is not None:
        _put_half(raw, offset_at, d * np.float16(offset_ratio))
    return raw.reshape(n_rows, n_in // block * size)


# Byte offset of the block scale d in a block (GGUF specification, ggml-common.h).
_SCALE_AT = {
    "Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "IQ4_NL": 0,
    "Q2_K": 80, "Q3_K": 108, "Q4_K": 0, "Q5_K": 0, "Q6_K": 208, "IQ4_XS": 0,
}  # fmt: skip

# Offset of the second scale, and its ratio to d that makes the values' mean zero: the minimum is subtracted times a
# random sub-scale like the codes' own (K types), or added as it is (_1 types).
_OFFSET = {"Q4_1": (2, -7.5), "Q5_1": (2, -15.5), "Q2_K": (82, 1.5), "Q4_K": (2, 7.5), "Q5_K": (2, 15.5)}

_unit_deviation: dict[str, float] = {}


def _block_scale(dtype: str) -> tuple[float, int | None, float]:
    """Deviation of random blocks with d = 1, and the second scale's offset and ratio."""
    offset_at, ratio = _OFFSET.get(dtype, (None, 0.0))
    if dtype not in _unit_deviation:
        qtype = GGMLQuantizationType[dtype]
        raw = np.random.default_rng(1).integers(0, 256, (256, GGML_QUANT_SIZES[qtype][1]), dtype=np.uint8)
        _put_half(raw, _SCALE_AT[dtype], np.ones(256, np.float16))
        if offset_at is not None:
            _put_half(raw, offset_at, np.full(256, ratio, np.float16))
        _unit_deviation[dtype] = float(dequantize(raw, qtype).std())
    return _unit_deviation[dtype], offset_at, ratio


def _put_half(raw: np.ndarray, at: int, value: np.ndarray) -> None:
    raw[:, at : at + 2] = value[:, None].view(np.uint8)


def random_weight(dtype: str, n_out: int, n_in: int, rng: np.random.Generator, std: float) -> np.ndarray:
    """A random matrix of any supported type, as GGUFWriter wants it: floats, or uint8 rows of blocks."""
    if dtype in ("F32", "F16"):
        return rng.normal(0, std, (n_out, n_in)).astype(np.float32 if dtype == "F32" else np.float16)
    if dtype == "BF16":
        return quantize(rng.normal(0, std, (n_out, n_in)).astype(np.float32), GGMLQuantizationType.BF16)
    return random_blocks(dtype, n_out, n_in, rng, std)


def tensors(model: TinyModel) -> dict[str, tuple[np.ndarray, str]]:
    """Name -> (data, type) of every tensor, in file order."""
    m, rng = model.sized(), np.random.default_rng(model.seed)
    out: dict[str, tuple[np.ndarray, str]] = {}

    def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        dtype = m.types.get(name, m.dtype)
        out[f"{name}.weight"] = random_weight(dtype, n_out, n_in, rng, gain / math.sqrt(n_in)), dtype

    def vector(name: str, n: int, mean: float, std: float) -> None:
        out[name] = rng.normal(mean, std, n).astype(np.float32), "F32"

    matrix("token_embd", m.n_vocab, m.n_embd, math.sqrt(m.n_embd))
    if m.rope == "freqs":
        out["rope_freqs.weight"] = np.geomspace(1.0, 8.0, m.n_rot // 2).astype(np.float32), "F32"
    for layer in range(m.n_layer):
        blk = f"blk.{layer}."
        vector(blk + "attn_norm.weight", m.n_embd, 1.0, 0.2)
        for name, heads, gain in (
            ("attn_q", m.n_head, 1.5),
            ("attn_k", m.n_head_kv, 1.5),
            ("attn_v", m.n_head_kv, 1.0),
        ):
            matrix(blk + name, heads * m.head_dim, m.n_embd, gain)
            if m.bias:
                vector(f"{blk}{name}.bias", heads * m.head_dim, 0.0, 0.3)
        if m.arch == "qwen3":
            vector(blk + "attn_q_norm.weight", m.head_dim, 1.5, 0.2)
            vector(blk + "attn_k_norm.weight", m.head_dim, 1.5, 0.2)
        matrix(blk + "attn_output", m.n_embd, m.n_head * m.head_dim)
        vector(blk + "ffn_norm.weight", m.n_embd, 1.0, 0.2)
        matrix(blk + "ffn_gate", m.n_ff, m.n_embd)
        matrix(blk + "ffn_up", m.n_ff, m.n_embd)
        matrix(blk + "ffn_down", m.n_embd, m.n_ff)
    vector("output_norm.weight", m.n_embd, 1.0, 0.2)
    if not m.tied:
        matrix("output", m.n_vocab, m.n_embd)
    return out


def metadata(model: TinyModel) -> dict[str, Any]:
    """Key -> value: int is written as u32 (i32 if negative), float as f32, str as a string, lists as arrays."""
    m = model.sized()
    values: dict[str, Any] = {
        "general.name": f"tiny-{m.arch}-{m.dtype}-{m.rope}",
        f"{m.arch}.block_count": m.n_layer,
        f"{m.arch}.context_length": m.n_ctx,
        f"{m.arch}.embedding_length": m.n_embd,
        f"{m.arch}.feed_forward_length": m.n_ff,
        f"{m.arch}.attention.head_count": m.n_head,
        f"{m.arch}.attention.head_count_kv": m.n_head_kv,
        f"{m.arch}.attention.key_length": m.head_dim,
        f"{m.arch}.attention.value_length": m.head_dim,
        f"{m.arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{m.arch}.rope.freq_base": 10000.0,
        f"{m.arch}.rope.dimension_count": m.n_rot,
        f"{m.arch}.vocab_size": m.n_vocab,
    }
    values |= {f"{m.arch}.rope.{key}": value for key, value in ROPES[m.rope].items()}
    if m.vocabulary:
        values |= byte_vocabulary(m.n_vocab)
    return values


def byte_vocabulary(n_vocab: int, pre: str = "gpt-2") -> dict[str, Any]:
    """A byte-level BPE of the 256 bytes, one merge, two control tokens (BOS, EOS) and unused ones up to ``n_vocab``."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)}
    words = [*(letters[byte] for byte in range(256)), "th", "<|bos|>", "<|eos|>"]
    words += [f"<|unused{i}|>" for i in range(len(words), n_vocab)]
    normal, control, unused = 1, 3, 5
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [normal] * 257 + [control] * 2 + [unused] * (n_vocab - 259),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def add_metadata(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    """Write values by their Python type; see :func:`metadata`."""
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_int32 if value < 0 else writer.add_uint32)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def write(
    path: str | Path,
    model: TinyModel,
    meta: Mapping[str, Any] | None = None,
    weights: Mapping[str, tuple[np.ndarray, str] | None] | None = None,
    arch: str | None = None,
) -> Path:
    """Write the model. ``meta``, ``weights``: entries to replace or add, or (None) to leave out.

    ``arch``: another name for the architecture, or "" to leave it out.
    """
    values = {**metadata(model), **(meta or {})}
    writer = GGUFWriter(path, model.arch if arch is None else arch)
    add_metadata(writer, {key: value for key, value in values.items() if value is not None})
    for name, tensor in {**tensors(model), **(weights or {})}.items():
        if tensor is not None:
            data, dtype = tensor
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)
