"""The shape of fasa-demo-24m and its training schedule."""

from dataclasses import dataclass

from fasa_py.eval.tasks.vocabulary import VOCAB_SIZE

CONTEXT = 16384  # tokens
HEAD_DIM = 128
ROPE_BASE = 500000.0
RMS_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    n_layer: int = 8
    n_embd: int = 512
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 1280
    n_vocab: int = VOCAB_SIZE


@dataclass(frozen=True)
class Stage:
    end: float  # fraction of the training time at which the stage ends
    lengths: dict[int, float]  # row length in tokens -> share of the steps


@dataclass(frozen=True)
class Schedule:
    """How much is trained on what. Every step holds ``step_tokens`` tokens, in rows of one length."""

    stages: tuple[Stage, ...] = (
        Stage(0.22, {512: 0.3, 1024: 0.3, 2048: 0.4}),
        Stage(0.60, {1024: 0.1, 2048: 0.2, 4096: 0.3, 8192: 0.4}),
        Stage(1.0, {2048: 0.15, 4096: 0.2, 8192: 0.3, 16384: 0.35}),
    )
    step_tokens: int = 131072
    eval_lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    n_eval: int = 64  # examples of each family and length
    n_workers: int = 13  # processes that make rows
    n_shards: int = 32  # of the packed books
    lr_matrices: float = 0.02  # Muon
    lr_vectors: float = 0.003  # Adam: embedding and norms
    weight_decay: float = 0.05

    def stage(self, fraction: float) -> int:
        """Index of the stage at a fraction of the training time."""
        return sum(fraction >= stage.end for stage in self.stages[:-1])


TOY_SHAPE = Shape(n_layer=2)
TOY_SCHEDULE = Schedule(
    stages=(Stage(0.5, {512: 1.0}), Stage(1.0, {512: 0.5, 1024: 0.5})),
    step_tokens=2048,
    eval_lengths=(512, 1024),
    n_eval=2,
    n_workers=1,
    n_shards=1,
)


def learning_rate_factor(step: int, fraction: float) -> float:
    """Warm-up over 150 steps; linear decay to 2 % over the last 45 % of the time."""
    return min(1.0, (step + 1) / 150) * min(1.0, max(0.02, (1 - fraction) / 0.45))


def momentum(step: int) -> float:
    """Muon's momentum: from 0.85 to 0.95 over 300 steps."""
    return 0.85 + 0.1 * min(1.0, step / 300)
