"""The special tokens of the demo model: the last ids of its vocabulary."""

VOCAB_SIZE = 4096
BOS, USER, ASSISTANT, END = "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = [BOS, USER, ASSISTANT, END] + [f"<|reserved_{i}|>" for i in range(12)]
BOS_ID, USER_ID, ASSISTANT_ID, END_ID = (VOCAB_SIZE - len(SPECIALS) + i for i in range(4))
PAD_ID = VOCAB_SIZE - 1
