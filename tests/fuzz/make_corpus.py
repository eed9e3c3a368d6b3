"""Seeds for the GGUF fuzzer: ``python make_corpus.py FOLDER`` writes small well-formed files of every kind."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import gguf_maker as make
from gguf_maker import Maker, Tensor, array, scalar, u32


def model(arch: str, scaling: str) -> Maker:
    """A whole model of one layer: it loads, so that the fuzzer gets beyond the first tensor that is missing."""
    maker = Maker().add("general.architecture", scalar(make.STRING, arch))
    for key, count in (
        ("block_count", 1),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("context_length", 128),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
        ("rope.scaling.original_context_length", 64),
    ):
        maker.add(f"{arch}.{key}", scalar(make.U32, count))
    maker.add(f"{arch}.attention.layer_norm_rms_epsilon", scalar(make.F32, 1e-5))
    maker.add(f"{arch}.rope.freq_base", scalar(make.F32, 10000.0))
    maker.add(f"{arch}.rope.scaling.type", scalar(make.STRING, scaling))
    maker.add(f"{arch}.rope.scaling.factor", scalar(make.F32, 2.0))
    maker.add("tokenizer.ggml.tokens", array(make.STRING, ["<s>", "a", "b"]))
    maker.tensors = [Tensor("token_embd.weight", (32, 3), 8), Tensor("output_norm.weight", (32,))]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (32,), "attn_q.weight": (32, 32), "attn_k.weight": (32, 16), "attn_v.weight": (32, 16),
        "attn_output.weight": (32, 32), "ffn_norm.weight": (32,), "ffn_gate.weight": (32, 32),
        "ffn_up.weight": (32, 32), "ffn_down.weight": (32, 32),
    }  # fmt: skip
    if arch == "qwen2":
        shapes |= {"attn_q.bias": (32,), "attn_k.bias": (16,), "attn_v.bias": (16,)}
    if arch == "qwen3":
        shapes |= {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}
    maker.tensors += [Tensor(f"blk.0.{name}", dims, 2 * (len(dims) - 1)) for name, dims in shapes.items()]
    if arch == "llama":
        maker.add_tensor(Tensor("rope_freqs.weight", (4,), data=struct.pack("<4f", 1, 1, 2, 8)))
    return maker


def calibrated(arch: str, layout: str) -> Maker:
    """The same with a FASA table: 1 layer, 4 heads in 2 groups, 4 chunks a head."""
    maker = model(arch, "none")
    for key, count in (("version", 1), ("n_chunk", 4), ("n_tip", 2)):
        maker.add(f"fasa.{key}", scalar(make.U32, count))
    maker.add("fasa.chunk_layout", scalar(make.STRING, layout)).add("fasa.criterion", scalar(make.STRING, "mass"))
    maker.add("fasa.ca_scores", array(make.F32, [0.5, 0.25, 0.0, 1.0] * 4))
    maker.add("fasa.chunk_order", array(make.U16, [0, 3, 1, 2] * 2))
    return maker.add("fasa.chunk_order_head", array(make.U16, [3, 2, 1, 0] * 4))


def seeds() -> dict[str, Maker]:
    version2 = make.small_model()
    version2.version = u32(2)
    every_type = Maker(tensors=[Tensor(f"t{kind}", (256, 1), kind) for kind in make.BLOCKS])
    part = Maker().add("split.no", scalar(make.U16, 0)).add("split.count", scalar(make.U16, 1))
    return {
        "small": make.small_model(),
        "version2": version2,
        "nothing": Maker(),
        "every_type": every_type,
        "aligned": Maker(alignment=8).add("general.alignment", scalar(make.U32, 8)).add_tensor(Tensor("a", (3,))),
        "split": part.add("split.tensors.count", scalar(make.I32, 1)).add_tensor(Tensor("a", (1,))),
        "llama": model("llama", "linear"),
        "qwen2": model("qwen2", "yarn"),
        "qwen3": model("qwen3", "none"),
        "table_llama": calibrated("llama", "interleaved"),
        "table_qwen2": calibrated("qwen2", "half_split"),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, maker in seeds().items():
        (folder / name).write_bytes(maker.build())


if __name__ == "__main__":
    main()
