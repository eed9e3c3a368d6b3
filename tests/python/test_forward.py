"""The whole forward pass against the float64 reference, on tiny random models, under every instruction set and on CUDA.

Error: RMS of the difference over RMS of the logits, at one step after prefill and three decode steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import reference
from devices import ON_GPU, each_device
from engine import Engine, Job, isa, run_in_process
from tiny_models import ARCHS, FLOAT_TYPES, ROPES, TYPES, TinyModel, write

# Float weights: what is left is float32 sums, and keys and values that fall on the other side of an f16 rounding.
# Measured: 1.6e-4 at most.
FLOAT_LIMIT, FLOAT_MEDIAN = 5e-4, 1e-4
# On CUDA a prompt's activations, queries and softmax weights are rounded to half precision. Measured: 1.8e-3 at most,
# medians of a type 5e-4.
CUDA_FLOAT_LIMIT, CUDA_FLOAT_MEDIAN = 4e-3, 1e-3
# Quantised weights: activations are rounded to 8 bits in blocks, which adds up over 14 matrices and a sharp softmax.
# Measured: medians of a type 0.8e-2 to 1.7e-2, single steps up to 5.5e-2. llama.cpp, on models made the same way:
# 1.2e-2 to 2.6e-2 and 6.9e-2.
QUANTISED_LIMIT, QUANTISED_MEDIAN = 1e-1, 2.5e-2

TOKENS = [(7 * i * i + 3 * i) % 131 for i in range(40)]
CALLS = [37, 1, 1, 1]

MATRIX = {
    f"{arch}-{dtype}-{rope}": TinyModel(arch=arch, dtype=dtype, rope=rope, seed=11)
    for arch in ARCHS
    for dtype in TYPES
    for rope in ROPES
}
SHAPES = {
    "one-kv-head": TinyModel(n_head_kv=1),
    "kv-head-each": TinyModel(n_head_kv=4, arch="qwen3"),
    "seven-heads-one-kv": TinyModel(n_head=7, n_head_kv=1, arch="qwen2", dtype="Q5_1", n_embd=224, head_dim=32),
    "three-kv-groups": TinyModel(n_head=6, n_head_kv=3, dtype="Q4_0", head_dim=64),
    "wide-heads": TinyModel(head_dim=128, dtype="Q4_K", arch="qwen3"),
    "narrow-heads": TinyModel(head_dim=2, n_head=16, n_head_kv=4, n_embd=32, dtype="Q8_0"),
    "heads-of-80": TinyModel(head_dim=80, n_embd=160, dtype="Q5_0"),
    "heads-of-256": TinyModel(head_dim=256, n_head=2, n_head_kv=1, dtype="Q6_K"),
    "partial-rotary-interleaved": TinyModel(n_rot=12),
    "partial-rotary-half-split": TinyModel(arch="qwen3", n_rot=12, rope="yarn"),
    "partial-rotary-odd-head": TinyModel(arch="qwen2", head_dim=21, n_rot=14),
    "tied": TinyModel(tied=True),
    "tied-quantised": TinyModel(tied=True, dtype="Q6_K", arch="qwen3"),
    "llama-with-biases": TinyModel(bias=True, dtype="Q8_0"),
    "qwen3-with-biases": TinyModel(bias=True, arch="qwen3"),
    "one-layer": TinyModel(n_layer=1),
    "five-layers": TinyModel(n_layer=5, arch="qwen2"),
    "one-token-vocabulary": TinyModel(n_vocab=1),
    "mixed-types": TinyModel(
        dtype="Q4_K",
        types={
            "token_embd": "Q5_K",
            "output": "Q6_K",
            "blk.0.attn_v": "Q6_K",
            "blk.0.attn_k": "F16",
            "blk.1.attn_q": "Q8_0",
            "blk.1.attn_v": "BF16",
            "blk.0.ffn_down": "IQ4_XS",
            "blk.0.ffn_up": "F32",
            "blk.1.ffn_gate": "Q4_1",
        },
    ),
}
MODELS = {**MATRIX, **SHAPES}
CPUS = ("scalar", "avx2", "avx512")
ENGINES = (*CPUS, ON_GPU)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forward")
    for name, model in MODELS.items():
        write(folder / f"{name}.gguf", model)
    return folder


@pytest.fixture(scope="module")
def expected(directory: Path) -> Callable[[str], np.ndarray]:
    """Reference logits of a model at the ends of CALLS, (4, n_vocab)."""

    @cache
    def compute(name: str) -> np.ndarray:
        return reference.forward(reference.load(directory / f"{name}.gguf"), tokens_for(name), n_last=len(CALLS))

    return compute


@pytest.fixture(scope="module")
def computed(directory: Path) -> Callable[[str, str], np.ndarray]:
    """Logits of a model on CUDA or under an instruction set, all of which are computed at once in a process each."""

    def job(name: str, device: str) -> Job:
        return Job(str(directory / f"{name}.gguf"), tokens_for(name), CALLS, 16, 1, device)

    @cache
    def compute_all(cpu: str) -> dict[str, np.ndarray]:
        logits, used, reason = run_in_process([job(name, "cpu") for name in MODELS], directory, cpu)
        assert (used, reason) == (cpu, f"FASA_CPU={cpu}")
        return dict(zip(MODELS, logits, strict=True))

    @cache
    def compute(engine: str, name: str) -> np.ndarray:
        if engine == "cuda":
            return job(name, "cuda").run()
        if CPUS.index(engine) > CPUS.index(isa()[0]):
            pytest.skip(f"this processor or build has no {engine}")
        return compute_all(engine)[name]

    return compute


def tokens_for(name: str) -> list[int]:
    return [token % MODELS[name].n_vocab for token in TOKENS]


def error(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Relative error of each row."""
    return np.sqrt(np.mean((ours - theirs) ** 2, axis=-1) / np.mean(theirs**2, axis=-1))


def limits(model: TinyModel, engine: str = "cpu") -> tuple[float, float]:
    """Largest error of any step, and of the median over several."""
    if not {model.dtype, *model.types.values()} <= set(FLOAT_TYPES):
        return QUANTISED_LIMIT, QUANTISED_MEDIAN
    return (CUDA_FLOAT_LIMIT, CUDA_FLOAT_MEDIAN) if engine == "cuda" else (FLOAT_LIMIT, FLOAT_MEDIAN)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_logits_match_the_reference(engine: str, name: str, computed: Callable, expected: Callable) -> None:
    errors = error(computed(engine, name), expected(name))
    assert errors.max() <= limits(MODELS[name], engine)[0], errors


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("engine", ENGINES)
def test_median_error_of_a_type(engine: str, dtype: str, computed: Callable, expected: Callable) -> None:
    names = [name for name, model in MATRIX.items() if model.dtype == dtype]
    errors = np.concatenate([error(computed(engine, name), expected(name)) for name in names])
    assert np.median(errors) <= limits(TinyModel(dtype=dtype), engine)[1]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_wrong_rope_would_be_noticed(arch: str, expected: Callable) -> None:
    """Every two RoPE variants differ by more than the loosest limit, so no test passes with the wrong one."""
    logits = [expected(f"{arch}-F32-{rope}") for rope in ROPES]
    for i, one in enumerate(logits):
        for other in logits[:i]:
            assert error(one, other).min() > QUANTISED_LIMIT


# Long enough for several batches, of a length that no batch size divides; the logits of the last N_LAST are compared.
LONG, N_LAST = [(11 * i * i + 5 * i) % 131 for i in range(233)], 12
LONG_MODELS = ("llama-F32-plain", "qwen2-F16-yarn", "qwen3-Q8_0-plain", "llama-Q4_K-freqs", "qwen2-Q6_K-linear")


@pytest.fixture(scope="module")
def token_by_token(directory: Path) -> Callable[[str, str], np.ndarray]:
    """Logits of the last of the LONG tokens, each decoded in a call of its own by one thread of a device."""

    @cache
    def compute(device: str, name: str) -> np.ndarray:
        return Job(str(directory / f"{name}.gguf"), LONG, [1] * len(LONG), 1, 1, device).run()[-N_LAST:]

    return compute


@pytest.mark.parametrize("name", LONG_MODELS)
def test_long_prompt_matches_the_reference(device: str, name: str, directory: Path, token_by_token: Callable) -> None:
    expected = reference.forward(reference.load(directory / f"{name}.gguf"), LONG, N_LAST)
    errors = error(token_by_token(device, name), expected)
    limit, limit_median = limits(MODELS[name], device)
    assert errors.max() <= limit
    assert np.median(errors) <= limit_median


@pytest.mark.parametrize("name", LONG_MODELS)
@pytest.mark.parametrize(
    ("device", "n_threads"),
    [("cpu", 1), ("cpu", 2), ("cpu", 3), ("cpu", 7), pytest.param("cuda", 1, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize(
    ("calls", "n_batch"), [([222], 0), ([222], 64), ([222], 13), ([95, 127], 37), ([1, 2, 3, 216], 32)]
)
def test_batches_and_threads_do_not_matter(
    name: str, device: str, n_threads: int, calls: list[int], n_batch: int, directory: Path, token_by_token: Callable
) -> None:
    job = Job(str(directory / f"{name}.gguf"), LONG, calls + [1] * (N_LAST - 1), n_batch, n_threads, device)
    errors = error(job.run()[-N_LAST:], token_by_token(device, name))
    limit, limit_median = limits(MODELS[name], device)
    assert errors.max() <= limit
    assert np.median(errors) <= limit_median


@each_device
@pytest.mark.parametrize("name", LONG_MODELS)
@pytest.mark.parametrize("n_tokens", [21, 43, 61])
def test_logits_of_a_prompt_have_the_same_bits_in_batches_of_any_size(
    name: str, n_tokens: int, directory: Path
) -> None:
    logits = []
    for n_batch in (64, 1, 8, 20, 21, 33):
        with Engine(directory / f"{name}.gguf", n_ctx=64, n_batch=n_batch) as engine:
            logits.append(engine.decode(LONG[:n_tokens]))
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])


@each_device
@pytest.mark.parametrize("name", LONG_MODELS)
def test_truncated_context_computes_the_same(name: str, directory: Path) -> None:
    """What was decoded before a truncation leaves no trace."""
    with Engine(directory / f"{name}.gguf", n_ctx=64, n_batch=16) as engine:
        expected = engine.decode(LONG[:41])
        engine.decode(LONG[100:120])
        engine.truncate(40)
        np.testing.assert_array_equal(engine.decode(LONG[40:41]).argmax(), expected.argmax())
        engine.truncate(0)
        np.testing.assert_array_equal(engine.decode(LONG[:41]), expected)


@each_device
def test_sequences_do_not_see_each_other(directory: Path) -> None:
    path = directory / "qwen3-Q8_0-plain.gguf"
    with Engine(path, n_ctx=64) as alone:
        expected = alone.decode(LONG[:30])
    with Engine(path, n_ctx=64, n_seq=3) as engine:
        for seq, tokens in ((0, LONG[50:70]), (2, LONG[80:90]), (1, LONG[:15]), (0, LONG[70:80])):
            engine.decode(tokens, seq)
        assert error(engine.decode(LONG[15:30], 1), expected) <= QUANTISED_LIMIT
        assert [engine.length(seq) for seq in range(3)] == [30, 30, 10]
