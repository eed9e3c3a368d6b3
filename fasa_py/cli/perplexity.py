"""measure how well a model predicts a text"""

from __future__ import annotations

import argparse
import math

import numpy as np

from ..progress import progress_bar
from .common import add_model_arguments, load_model, read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="the text; '-' or nothing: read from stdin")
    parser.add_argument("-f", "--file", help="read the text from this file")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    text = read_text(args.text, args.file)
    with load_model(args) as llm:
        tokens = llm.tokenize(text, add_bos=False)
        start = llm.tokenize("")  # BOS, when the model has it: every window begins with it
        step = llm.n_ctx - len(start)
        if step < 2 or len(tokens) + len(start) < 2:
            raise ValueError(
                f"perplexity needs two tokens in a window: the text has {len(tokens)}, n_ctx = {llm.n_ctx}"
            )
        windows = [start + tokens[i : i + step] for i in range(0, len(tokens), step)]
        total, n_scored = 0.0, 0
        with progress_bar("scoring") as show:
            for window in windows:
                if len(window) < 2:
                    continue  # one token left over and no BOS: nothing predicts it
                scores = llm.score(window)[1:].astype(np.float64)
                total += float(scores.sum())
                n_scored += len(scores)
                if show is not None:
                    show(n_scored / len(tokens))
    split = "1 window" if len(windows) == 1 else f"{len(windows)} windows"
    print(f"perplexity {math.exp(-total / n_scored):.4f} ({n_scored} tokens in {split} of {step})")
    return 0
