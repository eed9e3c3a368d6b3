"""Write fasa-demo-24m as GGUF files, F16 and Q8_0, from the trained weights and the tokenizer.

python export_gguf.py state.npz tokenizer.json OUTDIR
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from config import CONTEXT, HEAD_DIM, RMS_EPS, ROPE_BASE
from fasa_py.eval.tasks.vocabulary import BOS_ID, END_ID, PAD_ID, VOCAB_SIZE

CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = ns.system + message['content'] + '\n\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user|>' + ns.system + message['content'] + '<|end|>' -}}{%- set ns.system = '' -%}"
    "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant|>' + message['content'] + '<|end|>' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
FILES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# GGUF tensor name -> parameter of model.py, stacked over layers
LAYER_TENSORS = {
    "attn_norm": "attn_norm",
    "attn_q": "wq",
    "attn_k": "wk",
    "attn_v": "wv",
    "attn_output": "wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "w_gate",
    "ffn_up": "w_up",
    "ffn_down": "w_down",
}

State = dict[str, NDArray[Any]]


def tensors(state: State) -> Iterator[tuple[str, NDArray[Any]]]:
    """(GGUF name, array) of all tensors; matrices are (n_out, n_in)."""
    yield "token_embd.weight", state["embedding"]
    for layer in range(state["wq"].shape[0]):
        for name, parameter in LAYER_TENSORS.items():
            yield f"blk.{layer}.{name}.weight", state[parameter][layer]
    yield "output_norm.weight", state["output_norm"]


def add_description(writer: gguf.GGUFWriter, file_type: LlamaFileType) -> None:
    writer.add_name("fasa-demo-24m")
    writer.add_basename("fasa-demo")
    writer.add_size_label("24M")
    writer.add_version("v1")
    writer.add_description(
        "A 24M-parameter long-context (16k) model for tests and demonstrations of sparse attention. Trained from "
        "scratch on public-domain classic books and synthetic retrieval tasks; it finds and lists facts hidden in long "
        "texts."
    )
    writer.add_license("cc0-1.0")
    writer.add_license_name("CC0 1.0 (training text: public-domain books)")
    writer.add_languages(["en"])
    writer.add_tags(["long-context", "retrieval", "demo", "text-generation"])
    writer.add_type("model")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_hparams(writer: gguf.GGUFWriter, state: State) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(state["embedding"].shape[1])
    writer.add_block_count(state["wq"].shape[0])
    writer.add_feed_forward_length(state["w_gate"].shape[1])
    writer.add_head_count(state["wq"].shape[1] // HEAD_DIM)
    writer.add_head_count_kv(state["wk"].shape[1] // HEAD_DIM)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB_SIZE)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """tokenizer: the parsed tokenizer.json."""
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for added in sorted(tokenizer["added_tokens"], key=lambda token: token["id"]):
        tokens.append(added["content"])
        types.append(gguf.TokenType.CONTROL)
    if len(tokens) != VOCAB_SIZE:
        raise SystemExit(f"the tokenizer has {len(tokens)} entries instead of {VOCAB_SIZE}")
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_eot_token_id(END_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_tensor(writer: gguf.GGUFWriter, name: str, array: NDArray[Any], dtype: GGMLQuantizationType) -> None:
    """Vectors stay F32; matrices are stored as ``dtype``."""
    values = np.ascontiguousarray(array, dtype=np.float32)
    if values.ndim == 1:
        writer.add_tensor(name, values)
    elif dtype == GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("state", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    state = dict(np.load(args.state))
    tokenizer = json.loads(args.tokenizer.read_text(encoding="utf-8"))
    for suffix, (dtype, file_type) in FILES.items():
        writer = gguf.GGUFWriter(args.out / f"fasa-demo-24m-{suffix}.gguf", "llama")
        add_description(writer, file_type)
        add_hparams(writer, state)
        add_tokenizer(writer, tokenizer)
        for name, array in tensors(state):
            add_tensor(writer, name, array, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
