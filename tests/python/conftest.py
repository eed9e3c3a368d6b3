"""Fixtures: the embedded demo model, and a tiny random one with a byte-level vocabulary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import TinyModel, write

import fasa_py

# A shell that starts the tests in the background leaves SIGINT ignored, which child processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_llm() -> Iterator[fasa_py.Llama]:
    """The demo model with a context of 2,048 tokens. Shared: tests must not rely on what it holds, nor close it."""
    with fasa_py.Llama(n_ctx=2048) as llm:
        yield llm


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are the 256 bytes (ids 0 to 255), ``th``, BOS 257, EOS 258 and unused ones."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write(path, TinyModel(n_vocab=270, vocabulary=True, seed=5))


@pytest.fixture
def tiny_llm(tiny_path: Path) -> Iterator[fasa_py.Llama]:
    """The tiny model (trained context 256), a fresh object."""
    with fasa_py.Llama(tiny_path, n_threads=1) as llm:
        yield llm
