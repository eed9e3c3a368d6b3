"""Fixtures: the devices, the embedded demo model, and a tiny random one with a byte-level vocabulary.

Whatever a machine has, ``device="auto"`` is the CPU in these tests, but for those that use the fixture ``device``, or a
fixture that uses it: they run on every device. Those on a GPU have the mark ``gpu``, and are skipped where there is
none.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import DEVICES, without_gpu
from tiny_models import TinyModel, write

import fasa_py
import fasa_py.model

# A shell that starts the tests in the background leaves SIGINT ignored, which child processes would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_parse_device = fasa_py.model.parse_device


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := without_gpu()):
        pytest.skip(reason)
    own = getattr(item, "callspec", None)
    chosen = own.params.get("device", "cpu") if own else "cpu"
    fasa_py.model.parse_device = lambda device: _parse_device(chosen if device == "auto" else device)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """What ``device="auto"`` is in a test. Fixtures that load a model and outlive a test must use this one."""
    return request.param


@pytest.fixture(scope="module")
def demo_llm(device: str) -> Iterator[fasa_py.Llama]:
    """The demo model with a context of 2,048 tokens. Shared: tests must not rely on what it holds, nor close it."""
    with fasa_py.Llama(n_ctx=2048) as llm:
        yield llm


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are the 256 bytes (ids 0 to 255), ``th``, BOS 257, EOS 258 and unused ones."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write(path, TinyModel(n_vocab=270, vocabulary=True, seed=5))


@pytest.fixture
def tiny_llm(tiny_path: Path, device: str) -> Iterator[fasa_py.Llama]:
    """The tiny model (trained context 256), a fresh object."""
    with fasa_py.Llama(tiny_path, n_threads=1) as llm:
        yield llm
