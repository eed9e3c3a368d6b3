"""Seeds for the GGUF fuzzer: ``python make_corpus.py FOLDER`` writes small well-formed files of every kind."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import gguf_maker as make
from gguf_maker import Maker, Tensor, array, scalar, u32


def model(arch: str, scaling: str) -> Maker:
    """The metadata of a tiny model with a vocabulary, and its embedding."""
    maker = Maker().add("general.architecture", scalar(make.STRING, arch))
    for key, count in (
        ("block_count", 2),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
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
    return maker.add_tensor(Tensor("token_embd.weight", (32, 3), 8))


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
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, maker in seeds().items():
        (folder / name).write_bytes(maker.build())


if __name__ == "__main__":
    main()
