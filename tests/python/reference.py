"""What the engine must compute: the forward pass in NumPy float64, from the dequantised weights of a GGUF file.

Shapes: ``n`` tokens, ``x`` (n, n_embd), ``q`` (n, n_head, head_dim), ``k`` and ``v`` (n, n_head_kv, head_dim).
Keys and meaning of the metadata are llama.cpp's; ``test_golden.py`` holds this file to llama.cpp's logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

HALF_SPLIT = ("qwen2", "qwen3")  # RoPE rotates dims (i, i + n_rot/2); elsewhere (2i, 2i + 1)


@dataclass
class Model:
    """Metadata without the architecture's prefix, and weights as float64, ``(n_out, n_in)``."""

    arch: str
    meta: dict[str, Any]
    weights: dict[str, np.ndarray] = field(repr=False)

    @property
    def n_head(self) -> int:
        return self.meta["attention.head_count"]

    @property
    def n_head_kv(self) -> int:
        return self.meta.get("attention.head_count_kv", self.n_head)

    @property
    def head_dim(self) -> int:
        return self.meta.get("attention.key_length", self.meta["embedding_length"] // self.n_head)

    @property
    def n_rot(self) -> int:
        return self.meta.get("rope.dimension_count", self.head_dim)


def load(path: str | Path) -> Model:
    reader = GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    scalars = {key: f.contents() for key, f in reader.fields.items() if key.startswith(arch + ".")}
    weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    return Model(arch, {key.removeprefix(arch + "."): value for key, value in scalars.items()}, weights)


def rope_tables(model: Model, n: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every position and pair, (n, n_rot / 2), YaRN's magnitude counted in."""
    meta, n_rot = model.meta, model.n_rot
    base = meta.get("rope.freq_base", 10000.0)
    kind = meta.get("rope.scaling.type", "linear")
    factor = meta.get("rope.scaling.factor", 0.0) or meta.get("rope.scale_linear", 0.0) or 1.0
    magnitude = meta.get("rope.scaling.attn_factor", 1.0)

    pair = np.arange(n_rot // 2)
    frequency = base ** (-2.0 * pair / n_rot) / model.weights.get("rope_freqs.weight", np.ones(n_rot // 2))
    if kind == "linear":
        frequency = frequency / factor
    elif kind == "yarn":
        n_ctx_original = meta.get("rope.scaling.original_context_length", meta["context_length"])

        def correction(n_turns: float) -> float:
            """The pair that makes ``n_turns`` full turns within the original context (YaRN, section 3.2)."""
            return n_rot * math.log(n_ctx_original / (n_turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(0, math.floor(correction(meta.get("rope.scaling.yarn_beta_fast", 32.0))))
        high = min(n_rot - 1, math.ceil(correction(meta.get("rope.scaling.yarn_beta_slow", 1.0))))
        keep = 1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)  # 1: fast pair, left as trained
        frequency = frequency * keep + frequency / factor * (1 - keep)
        if factor > 1:
            magnitude *= 1 + 0.1 * math.log(factor)
    angle = np.arange(n)[:, None] * frequency
    return np.cos(angle) * magnitude, np.sin(angle) * magnitude


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, half_split: bool) -> np.ndarray:
    """Rotate the first n_rot dims of x (n, heads, head_dim); the others stay."""
    n_pair = cos.shape[1]
    if half_split:
        first, second = slice(0, n_pair), slice(n_pair, 2 * n_pair)
    else:
        first, second = slice(0, 2 * n_pair, 2), slice(1, 2 * n_pair, 2)
    a, b = x[..., first], x[..., second]
    cos, sin = cos[:, None], sin[:, None]
    out = x.copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal softmax attention; query head h reads KV head h * n_head_kv // n_head. Returns (n, n_head * head_dim)."""
    n, n_head, head_dim = q.shape
    out = np.empty_like(q)
    hidden = np.triu(np.full((n, n), -np.inf), 1)
    for head in range(n_head):
        kv_head = head * k.shape[1] // n_head
        score = q[:, head] @ k[:, kv_head].T / math.sqrt(head_dim) + hidden
        p = np.exp(score - score.max(axis=1, keepdims=True))
        out[:, head] = p @ v[:, kv_head] / p.sum(axis=1, keepdims=True)
    return out.reshape(n, n_head * head_dim)


def forward(model: Model, tokens: list[int], n_last: int = 1, kv_f16: bool = True) -> np.ndarray:
    """Logits of the last ``n_last`` tokens, (n_last, n_vocab). ``kv_f16``: round cached keys and values to f16."""
    w, epsilon = model.weights, model.meta["attention.layer_norm_rms_epsilon"]
    n, half_split = len(tokens), model.arch in HALF_SPLIT
    cos, sin = rope_tables(model, n)

    def cached(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float16).astype(np.float64) if kv_f16 else a

    x = w["token_embd.weight"][tokens]
    for layer in range(model.meta["block_count"]):

        def linear(name: str, a: np.ndarray, layer: int = layer) -> np.ndarray:
            return a @ w[f"blk.{layer}.{name}.weight"].T + w.get(f"blk.{layer}.{name}.bias", 0.0)

        def norm(name: str, a: np.ndarray, layer: int = layer) -> np.ndarray:
            return rms_norm(a, w[f"blk.{layer}.{name}.weight"], epsilon)

        h = norm("attn_norm", x)
        q = linear("attn_q", h).reshape(n, model.n_head, model.head_dim)
        k = linear("attn_k", h).reshape(n, model.n_head_kv, model.head_dim)
        v = linear("attn_v", h).reshape(n, model.n_head_kv, model.head_dim)
        if model.arch == "qwen3":
            q, k = norm("attn_q_norm", q), norm("attn_k_norm", k)
        q, k = rope(q, cos, sin, half_split), rope(k, cos, sin, half_split)
        x = x + linear("attn_output", attention(q, cached(k), cached(v)))
        h = norm("ffn_norm", x)
        gate = linear("ffn_gate", h)
        x = x + linear("ffn_down", gate / (1 + np.exp(-gate)) * linear("ffn_up", h))

    x = rms_norm(x[-n_last:], w["output_norm.weight"], epsilon)
    return x @ w.get("output.weight", w["token_embd.weight"]).T
