"""Write a GGUF of a real model's shape with random weights: what speed depends on, without a download.

    python bench/make_model.py llama-3.2-1b Q4_K_M build/models/llama-3.2-1b-Q4_K_M.gguf

Tensor types are laid out as llama.cpp's quantiser does it, and a dummy byte-level vocabulary of the real size is
included, so that other engines load the file too. Needs nothing but NumPy. Matrices are cut out of a few MiB of random
blocks, again and again, so a file is made as fast as it can be written: no processor's cache knows that weights
repeat, and no two rows of a matrix that are near each other do.
"""

from __future__ import annotations

import argparse
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@dataclass(frozen=True)
class Shape:
    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    freq_base: float
    tied: bool
    rope_factor: float = 0.0  # Llama 3.x: context extension folded into a rope_freqs tensor; 0: none


SHAPES = {
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, True, 32.0),
    "llama-3.2-3b": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128256, 131072, 5e5, True, 32.0),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 5e5, False, 8.0),
    "mistral-7b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 32768, 32768, 1e6, False),
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, True),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 131072, 1e6, False),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6, True),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, 40960, 1e6, True),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 40960, 1e6, False),
    "smoke": Shape("llama", 2, 256, 512, 4, 2, 64, 1024, 8192, 1e4, True, 8.0),
}
MIXES = ("Q4_K_M", "Q8_0", "F16")


def type_of(name: str, n_in: int, shape: Shape, mix: str) -> str:
    """The type that llama.cpp's quantiser gives a matrix. Q4_K_M: the output and half of attn_v, ffn_down are Q6_K."""
    if mix != "Q4_K_M":
        return mix
    important = name == ("token_embd" if shape.tied else "output")
    if name.endswith(("attn_v", "ffn_down")):
        layer, n = int(name.split(".")[1]), shape.n_layer
        important = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    dtype = "Q6_K" if important else "Q4_K"
    whole_blocks = n_in % 256 == 0
    return dtype if whole_blocks else {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[dtype]


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """Name, n_out, n_in of every matrix."""
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield "token_embd", shape.n_vocab, shape.n_embd
    for layer in range(shape.n_layer):
        for name, n_out, n_in in (
            ("attn_q", n_q, shape.n_embd),
            ("attn_k", n_kv, shape.n_embd),
            ("attn_v", n_kv, shape.n_embd),
            ("attn_output", shape.n_embd, n_q),
            ("ffn_gate", shape.n_ff, shape.n_embd),
            ("ffn_up", shape.n_ff, shape.n_embd),
            ("ffn_down", shape.n_embd, shape.n_ff),
        ):
            yield f"blk.{layer}.{name}", n_out, n_in
    if not shape.tied:
        yield "output", shape.n_vocab, shape.n_embd


def vectors(shape: Shape) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of norms, biases and RoPE factors."""
    if shape.rope_factor:
        yield "rope_freqs.weight", llama3_factors(shape)
    for layer in range(shape.n_layer):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(shape.n_embd, np.float32)
        if shape.arch == "qwen2":
            for name, heads in (("attn_q", shape.n_head), ("attn_k", shape.n_head_kv), ("attn_v", shape.n_head_kv)):
                yield f"blk.{layer}.{name}.bias", np.zeros(heads * shape.head_dim, np.float32)
        if shape.arch == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                yield f"blk.{layer}.{name}.weight", np.ones(shape.head_dim, np.float32)
    yield "output_norm.weight", np.ones(shape.n_embd, np.float32)


def llama3_factors(shape: Shape) -> np.ndarray:
    """Llama 3.1's scaling as factors that divide the frequencies: 1 for fast pairs, ``rope_factor`` for slow ones."""
    n_ctx_original, low, high = 8192, 1.0, 4.0
    frequency = shape.freq_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns = n_ctx_original * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (smooth + (1 - smooth) / shape.rope_factor)).astype(np.float32)


def byte_vocabulary(n_vocab: int, pre: str) -> dict[str, Any]:
    """A byte-level BPE of the 256 bytes, one merge, two control tokens (BOS, EOS) and unused ones up to ``n_vocab``."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
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


@dataclass(frozen=True)
class Format:
    """A tensor type: its number in GGUF and its blocks. Blocks of random bits but for the half-precision scales at
    ``scales`` (offset, ratio) have values of mean zero and of ``deviation`` times the scale of ratio 1."""

    number: int
    n_values: int = 1
    n_bytes: int = 4
    scales: tuple[tuple[int, float], ...] = ()
    deviation: float = 0.0


FORMATS = {
    "F32": Format(0, 1, 4),
    "F16": Format(1, 1, 2),
    "Q5_0": Format(6, 32, 22, ((0, 1.0),), 9.2),
    "Q8_0": Format(8, 32, 34, ((0, 1.0),), 73.9),
    "Q4_K": Format(12, 256, 144, ((0, 1.0), (2, 7.5)), 258.0),
    "Q6_K": Format(14, 256, 210, ((208, 1.0),), 1366.0),
}
POOL_BYTES = 32 << 20


class RandomBlocks:
    """Random matrices of any type in :data:`FORMATS`, of values of mean 0 and deviation 1 / sqrt(n_in)."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pools: dict[tuple[str, int], np.ndarray] = {}

    def write(self, file: BinaryIO, dtype: str, n_out: int, n_in: int) -> None:
        block = FORMATS[dtype]
        if (dtype, n_in) not in self.pools:
            self.pools[dtype, n_in] = self._pool(dtype, n_in)
        pool = self.pools[dtype, n_in]
        left, at = n_out * n_in // block.n_values, int(self.rng.integers(len(pool)))
        while left > 0:
            part = pool[at : at + left]
            file.write(part.data)
            left, at = left - len(part), 0

    def _pool(self, dtype: str, n_in: int) -> np.ndarray:
        """Blocks, uint8 (n, n_bytes); n has no divisor in common with the blocks of a row."""
        block = FORMATS[dtype]
        n = POOL_BYTES // block.n_bytes | 1
        while math.gcd(n, n_in) > 1:
            n += 2
        raw = self.rng.integers(0, 256, (n, block.n_bytes), dtype=np.uint8)
        if dtype == "F16":  # any sign and mantissa under one exponent: as good as Gaussian for timing
            exponent = 15 + math.floor(-0.5 * math.log2(n_in))
            return ((raw.view(np.uint16) & 0x83FF) | np.uint16(exponent << 10)).view(np.uint8)
        d = self.rng.uniform(0.7, 1.3, n) / (block.deviation * math.sqrt(n_in))
        for offset, ratio in block.scales:
            raw[:, offset : offset + 2] = (d * ratio).astype(np.float16)[:, None].view(np.uint8)
        return raw


ALIGNMENT = 32


def padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % ALIGNMENT)


def packed_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def packed(value: Any) -> bytes:
    """A metadata value with its type: int as u32, float as f32, lists (of str, else of int) as arrays."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + packed_string(value)
    head = struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 5, len(value))
    return head + (b"".join(map(packed_string, value)) if isinstance(value[0], str) else np.int32(value).tobytes())


FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}


def metadata(name: str, shape: Shape, mix: str) -> dict[str, Any]:
    arch = shape.arch
    return {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": FILE_TYPES[mix],
        f"{arch}.block_count": shape.n_layer,
        f"{arch}.context_length": shape.n_ctx,
        f"{arch}.embedding_length": shape.n_embd,
        f"{arch}.feed_forward_length": shape.n_ff,
        f"{arch}.attention.head_count": shape.n_head,
        f"{arch}.attention.head_count_kv": shape.n_head_kv,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": shape.freq_base,
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.vocab_size": shape.n_vocab,
        **byte_vocabulary(shape.n_vocab, "llama-bpe" if arch == "llama" else "qwen2"),
    }


def n_bytes_of(dtype: str, dims: tuple[int, ...]) -> int:
    return math.prod(dims) // FORMATS[dtype].n_values * FORMATS[dtype].n_bytes


def make(path: Path, shape: Shape, mix: str, seed: int = 0) -> None:
    """Written under another name first, so that a file of this name is complete."""
    small = list(vectors(shape))
    large = [(name, n_out, n_in, type_of(name, n_in, shape, mix)) for name, n_out, n_in in matrices(shape)]
    # Name, type and dims, the contiguous one first.
    table: list[tuple[str, str, tuple[int, ...]]] = [(name, "F32", values.shape) for name, values in small]
    table += [(f"{name}.weight", dtype, (n_in, n_out)) for name, n_out, n_in, dtype in large]
    values = metadata(path.stem, shape, mix)

    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(table), len(values)))
        for key, value in values.items():
            file.write(packed_string(key) + packed(value))
        offset = 0
        for name, dtype, dims in table:
            file.write(packed_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", FORMATS[dtype].number, offset))
            offset += n_bytes_of(dtype, dims)
            offset += len(padding(offset))
        file.write(padding(file.tell()))
        for _, data in small:
            file.write(data.tobytes())
            file.write(padding(data.nbytes))
        blocks = RandomBlocks(seed)
        for _, n_out, n_in, dtype in large:
            blocks.write(file, dtype, n_out, n_in)
            file.write(padding(n_bytes_of(dtype, (n_in, n_out))))
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("mix", choices=MIXES)
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    make(arguments.path, SHAPES[arguments.shape], arguments.mix)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
