"""Write a GGUF of a real model's shape with random weights: what speed depends on, without a download.

    python bench/make_model.py llama-3.2-1b Q4_K_M build/models/llama-3.2-1b-Q4_K_M.gguf

Tensor types are laid out as llama.cpp's quantiser does it, and a dummy byte-level vocabulary of the real size is
included, so that other engines load the file too. Tensors are written as they are made: memory use stays at one tensor.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from tiny_models import add_metadata, byte_vocabulary, random_blocks


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
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 32768, 1e6, False),
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


def random_matrix(dtype: str, n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    if dtype != "F16":
        return random_blocks(dtype, n_out, n_in, rng, 1 / math.sqrt(n_in))
    # Random sign and mantissa under one exponent: as good as Gaussian for timing, and much faster to make.
    exponent = 15 + math.floor(-0.5 * math.log2(n_in))
    bits = rng.integers(0, 1 << 16, (n_out, n_in), dtype=np.uint16)
    return ((bits & 0x83FF) | np.uint16(exponent << 10)).view(np.float16)


def make(path: Path, shape: Shape, mix: str, seed: int = 0) -> None:
    writer = GGUFWriter(path, shape.arch)
    add_metadata(
        writer,
        {
            "general.name": path.stem,
            "general.file_type": int(LlamaFileType["MOSTLY_" + mix]),
            f"{shape.arch}.block_count": shape.n_layer,
            f"{shape.arch}.context_length": shape.n_ctx,
            f"{shape.arch}.embedding_length": shape.n_embd,
            f"{shape.arch}.feed_forward_length": shape.n_ff,
            f"{shape.arch}.attention.head_count": shape.n_head,
            f"{shape.arch}.attention.head_count_kv": shape.n_head_kv,
            f"{shape.arch}.attention.key_length": shape.head_dim,
            f"{shape.arch}.attention.value_length": shape.head_dim,
            f"{shape.arch}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{shape.arch}.rope.freq_base": shape.freq_base,
            f"{shape.arch}.rope.dimension_count": shape.head_dim,
            f"{shape.arch}.vocab_size": shape.n_vocab,
            **byte_vocabulary(shape.n_vocab, "llama-bpe" if shape.arch == "llama" else "qwen2"),
        },
    )
    small = list(vectors(shape))
    large = [(name, n_out, n_in, type_of(name, n_in, shape, mix)) for name, n_out, n_in in matrices(shape)]
    for name, values in small:
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, n_out, n_in, dtype in large:
        qtype = GGMLQuantizationType[dtype]
        block, size = GGML_QUANT_SIZES[qtype]
        row_bytes = n_in // block * size
        data_type = np.dtype(np.float16 if dtype == "F16" else np.uint8)
        writer.add_tensor_info(
            f"{name}.weight", (n_out, row_bytes // data_type.itemsize), data_type, n_out * row_bytes, raw_dtype=qtype
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for _, values in small:
        writer.write_tensor_data(values)
    for _, n_out, n_in, dtype in large:
        writer.write_tensor_data(random_matrix(dtype, n_out, n_in, rng))
    writer.close()


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
