"""Options of llama-cpp-python that this package does not implement.

Values that change nothing pass; those that only make things faster or slower pass with a note in the log; all others
are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .errors import UnsupportedError

ANY = object()  # any value: it has no bearing here, or is honoured by how this engine works

# name -> values with which the option changes nothing
CONSTRUCTOR: dict[str, Any] = {
    "n_gpu_layers": ANY,  # noted
    "n_ubatch": ANY,  # n_batch is split as the kernels like it
    "n_threads_batch": ANY,  # noted, like the next two
    "use_mmap": ANY,
    "use_mlock": ANY,
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
    "chat_format": ANY,  # see check_chat_format
    "chat_handler": (None,),
    "draft_model": (None,),
    "tokenizer": (None,),
    "type_k": (None, 1),  # 1: f16, which is what this engine stores
    "type_v": (None, 1),
    "spm_infill": (False,),
}

# The same -> values without effect, and what happens with all others instead. No text depends on these.
NOTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n_gpu_layers": ((0, None), "all layers run on one device, which device= chooses"),
    "n_threads_batch": ((None,), "n_threads is for prompts too"),
    "use_mmap": ((True,), "the file is always mapped"),
    "use_mlock": ((False,), "nothing is locked in memory"),
}

RANDOM_SEEDS = (None, -1, 0xFFFFFFFF)  # llama.cpp's spellings of "a new one each time"

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


def note_differences(options: Mapping[str, Any]) -> None:
    """Log which of the constructor's options do not do here what they do in llama-cpp-python."""
    for name, (neutral, instead) in NOTED.items():
        if name in options and options[name] not in neutral:
            logging.getLogger("fasa_py").warning("%s=%r has no effect: %s", name, options[name], instead)


def check_chat_format(chat_format: str | None, has_template: bool) -> None:
    """llama-cpp-python's named formats are not implemented; a template of the file's own takes the place of one.

    :raises UnsupportedError: there is none
    """
    if chat_format is None:
        return
    if not has_template:
        raise UnsupportedError(
            f"Llama(chat_format={chat_format!r}): named formats are not implemented, and there is no chat template: "
            "give the source of one as chat_template"
        )
    logging.getLogger("fasa_py").warning("chat_format=%r has no effect: the chat template decides", chat_format)
