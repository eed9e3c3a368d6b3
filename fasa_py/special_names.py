"""Texts of tokens with a meaning of their own, for files that do not say so by an id.

The lists are those that llama.cpp goes by, so that a file ends its turns here where it does there.
"""

# ruff: noqa: RUF001

# Names by which files without an id for it are known to end a turn, best first.
EOT_NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip
EOM_NAMES = ("<|eom_id|>",)
# Tokens that end generation wherever they occur.
EOG_NAMES = frozenset(
    (
        *EOT_NAMES, *EOM_NAMES, "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>",
        "<turn|>", "<|tool_response>", "[e~[",
    )
)  # fmt: skip
# Fill-in-the-middle tokens: key of the id, names to look for without it.
FIM_NAMES = {
    "fim_pre_token_id": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf_token_id": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid_token_id": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep_token_id": ("<|file_sep|>",),
}  # fmt: skip
FIM_END_KEYS = ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
# Always shown, though files mark them as control tokens.
SHOWN_NAMES = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
