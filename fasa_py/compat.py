"""Options of llama-cpp-python that this package does not implement: refused, unless their value changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import UnsupportedError

ANY = object()  # any value: it has no bearing here, or is honoured by how this engine works

# name -> values with which the option changes nothing
CONSTRUCTOR: dict[str, Any] = {
    "n_gpu_layers": (0, -1),  # 0: device "cpu"; -1: what device="auto" finds
    "n_ubatch": ANY,  # n_batch is split as the kernels like it
    "n_threads_batch": (None,),
    "use_mmap": (True,),
    "use_mlock": (False,),
    "vocab_only": (False,),
    "embedding": (False,),
    "logits_all": ANY,  # log probabilities need no preparation here
    "flash_attn": ANY,  # attention never materialises n x n
    "offload_kqv": ANY,
    "no_perf": ANY,
    "last_n_tokens_size": (64,),
    "split_mode": ANY,
    "main_gpu": (0,),
    "tensor_split": (None,),
    "kv_overrides": (None,),
    "rope_scaling_type": (None, -1),
    "rope_freq_base": (0, 0.0),
    "rope_freq_scale": (0, 0.0),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "pooling_type": (-1,),
    "lora_base": (None,),
    "lora_scale": (1.0,),
    "lora_path": (None,),
    "numa": (False,),
    "chat_format": (None,),
    "chat_handler": (None,),
    "draft_model": (None,),
    "tokenizer": (None,),
    "type_k": (None, 1),  # 1: f16, which is what this engine stores
    "type_v": (None, 1),
    "spm_infill": (False,),
}

COMPLETION: dict[str, Any] = {
    "suffix": (None,),
    "typical_p": (1.0,),
    "tfs_z": (1.0,),
    "mirostat_mode": (0,),
    "mirostat_tau": ANY,  # of mirostat, which is refused
    "mirostat_eta": ANY,
    "stopping_criteria": (None,),
    "logits_processor": (None,),
    "grammar": (None,),
    "n": (None, 1),
    "best_of": (None, 1),
    "user": ANY,
}

CHAT: dict[str, Any] = {
    **{name: values for name, values in COMPLETION.items() if name not in ("suffix", "best_of")},
    "functions": (None, []),
    "function_call": (None, "none"),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
}


def refuse_unsupported(options: Mapping[str, Any], known: Mapping[str, Any], function: str) -> None:
    """Let pass what changes nothing.

    :raises TypeError: an option that llama-cpp-python does not have either
    :raises UnsupportedError: an option that would have to change something
    """
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        neutral = known[name]
        if neutral is not ANY and not any(value is v or value == v for v in neutral):
            raise UnsupportedError(f"{function}({name}={value!r}) is not implemented; leave {name} out")
