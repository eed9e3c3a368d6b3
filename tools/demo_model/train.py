"""Train fasa-demo-24m for a given time on one GPU, then evaluate it.

    python train.py PACKED OUT --minutes 14.5
    python train.py PACKED OUT --minutes 1 --toy     (two layers, short rows: checks the pipeline on any machine)

PACKED is what pack.py wrote. Writes OUT/state.npz (float16) and OUT/results.json, and OUT/checkpoint.npz every minute.
The stages and the learning rate follow the time spent, so that a faster machine sees more tokens.
"""

import argparse
import json
import multiprocessing as mp
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import (
    HEAD_DIM,
    TOY_SCHEDULE,
    TOY_SHAPE,
    Schedule,
    Shape,
    learning_rate_factor,
    momentum,
)
from data import Batch, RowSource, load_corpus
from evaluate import Evaluator
from model import Llama
from muon import Muon

LOG_SECONDS, EVAL_SECONDS, SAVE_SECONDS = 10.0, 75.0, 60.0
N_EVAL_WHILE_TRAINING = 12
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def fastest_attention(n_head: int) -> SDPBackend:
    """The quicker of cuDNN's and PyTorch's flash attention, forward and backward, on 8 rows of 8192 tokens."""
    seconds: dict[SDPBackend, float] = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        shape = (8, n_head, 8192, HEAD_DIM)
        qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        try:
            with sdpa_kernel([backend]):
                for i in range(6):
                    if i == 3:
                        torch.cuda.synchronize()
                        start = time.monotonic()
                    out = F.scaled_dot_product_attention(*qkv, is_causal=True)
                    out.backward(torch.ones_like(out))
                torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{backend.name} cannot be used: {str(error)[:200]}")
            continue
        seconds[backend] = time.monotonic() - start
    if not seconds:
        raise SystemExit("no flash attention for this GPU in this PyTorch")
    return min(seconds, key=seconds.__getitem__)


def save(net: Llama, path: Path) -> None:
    """Write the weights as float16, replacing the file only when complete."""
    state = {name: tensor.detach().half().cpu().numpy() for name, tensor in net.state_dict().items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **state)
    partial.replace(path)


class Trainer:
    """The network, its two optimizers and the running means that are printed."""

    def __init__(self, shape: Shape, schedule: Schedule, device: str) -> None:
        self.schedule, self.device = schedule, device
        on_gpu = device == "cuda"
        self.net = Llama(shape, torch.bfloat16 if on_gpu else torch.float32).to(device)
        if on_gpu:
            self.net.compile_parts()
        self._muon = Muon(self.net.matrices())
        self._adam = torch.optim.AdamW(self.net.vectors(), betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=on_gpu)
        self.n_steps = 0
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def _upload(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 (rows, length + 1) and weights float32 (rows * length,) on the device."""
        tokens = torch.from_numpy(batch.tokens.astype(np.int32)).to(self.device)
        weights = torch.from_numpy(batch.weights).to(self.device)
        return tokens.long(), weights.float().reshape(-1)

    def warm_up(self, batch: Batch) -> None:
        """One pass without an update, so that compilation stays outside the clock."""
        tokens, _ = self._upload(batch)
        loss, _ = self.net(tokens[:, :-1], tokens[:, 1:].reshape(-1))
        loss.mean().backward()
        self.net.zero_grad()

    def step(self, batch: Batch, fraction: float) -> None:
        """One update; ``fraction`` of the training time is over."""
        tokens, weights = self._upload(batch)
        targets = tokens[:, 1:].reshape(-1)
        loss, likeliest = self.net(tokens[:, :-1], targets)
        ((loss * weights).sum() / weights.sum()).backward()
        self._count(loss.detach(), likeliest == targets, weights)
        factor = learning_rate_factor(self.n_steps, fraction)
        torch.nn.utils.clip_grad_norm_(self.net.vectors(), 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self.schedule.lr_vectors * factor
        self._adam.step()
        self._muon.step(self.schedule.lr_matrices * factor, momentum(self.n_steps), self.schedule.weight_decay)
        self.net.zero_grad()
        self.n_steps += 1

    def _count(self, loss: torch.Tensor, right: torch.Tensor, weights: torch.Tensor) -> None:
        """Add up losses of text and of answers (whose weight is above 1), and the right answer tokens."""
        text, answers = weights == 1, weights > 1
        sums = [(loss * text).sum(), text.sum(), (loss * answers).sum(), answers.sum(), (right & answers).sum()]
        self._sums += torch.stack([s.double() for s in sums])

    def report(self) -> str:
        """Mean losses and answer accuracy since the last report."""
        text_loss, n_text, answer_loss, n_answers, n_right = self._sums.tolist()
        self._sums.zero_()
        n_answers = max(1.0, n_answers)
        return (
            f"text loss {text_loss / max(1.0, n_text):.4f}, answer loss {answer_loss / n_answers:.4f}, "
            f"answer tokens right {n_right / n_answers:.2%}"
        )


def train(trainer: Trainer, rows: RowSource, evaluator: Evaluator, out: Path, minutes: float) -> float:
    """Train for ``minutes``; returns the seconds spent."""
    schedule, seconds = trainer.schedule, minutes * 60
    start = logged = evaluated = saved = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        stage = schedule.stage(elapsed / seconds)
        rows.stage.value = stage
        trainer.step(rows.next(), elapsed / seconds)
        now = time.monotonic()
        if now - logged > LOG_SECONDS:
            print(f"{now - start:5.0f} s, step {trainer.n_steps}, stage {stage}: {trainer.report()}", flush=True)
            logged = now
        if now - evaluated > EVAL_SECONDS:
            accuracy = evaluator.accuracy(trainer.net, schedule.eval_lengths[: stage + 2], N_EVAL_WHILE_TRAINING)
            print_accuracy(accuracy)
            evaluated = time.monotonic()
        if now - saved > SAVE_SECONDS:
            save(trainer.net, out / "checkpoint.npz")
            saved = time.monotonic()
    return time.monotonic() - start


def print_accuracy(accuracy: dict[str, dict[str, dict[str, float]]]) -> None:
    for family, cells in accuracy.items():
        print(f"  {family:11s} " + "  ".join(f"{length}: {cell['exact']:6.1%}" for length, cell in cells.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=14.5)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    shape, schedule = (TOY_SHAPE, TOY_SCHEDULE) if args.toy else (Shape(), Schedule())
    args.out.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(args.packed, schedule)
    print(f"{len(corpus.haystack.texts)} books, {corpus.ids.size / 1e6:.1f} M tokens")
    evaluator = Evaluator(args.packed, schedule)
    rows = RowSource(args.packed, corpus, schedule)

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = fastest_attention(shape.n_head) if device == "cuda" else SDPBackend.MATH
    with sdpa_kernel([backend]):
        trainer = Trainer(shape, schedule, device)
        print(f"{sum(p.numel() for p in trainer.net.parameters())} parameters, {device}, {backend.name}")
        trainer.warm_up(rows.next())
        seconds = train(trainer, rows, evaluator, args.out, args.minutes)
        rows.close()
        save(trainer.net, args.out / "state.npz")
        with torch.no_grad():
            for parameter in trainer.net.parameters():  # evaluate what is exported
                parameter.copy_(parameter.half().float())
        accuracy = evaluator.accuracy(trainer.net, schedule.eval_lengths, schedule.n_eval)
        perplexity = evaluator.perplexity(trainer.net, schedule.eval_lengths)
    results = {
        "accuracy": accuracy,
        "heldout": perplexity,
        "steps": trainer.n_steps,
        "tokens": trainer.n_steps * schedule.step_tokens,
        "train_seconds": seconds,
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    print_accuracy(accuracy)
    print(json.dumps(perplexity))


if __name__ == "__main__":
    mp.set_start_method("fork")
    main()
