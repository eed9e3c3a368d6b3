"""Ctrl-C, as a real SIGINT, in a process of its own: the work stops, and the object stays usable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TinyModel, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")

# The process prints a line when it is at the place to be interrupted, and one more with what then happened.
SCRIPT = """
import sys, threading, time
from fasa_py import Llama

llm = Llama(sys.argv[1], device=sys.argv[3], n_threads=1)
banned = {258: -float("inf")}
expected = llm.generate([1, 2, 3], max_tokens=5, seed=1).tokens

def prefill():
    llm.generate([i % 250 for i in range(12000)], max_tokens=1, logit_bias=banned)

def decode():
    llm.generate("x", max_tokens=None, logit_bias=banned)

def stream():
    for _ in llm.generate("x", max_tokens=None, stream=True, logit_bias=banned):
        pass

def score():
    llm.score([i % 250 for i in range(12000)])

def queue():
    holder = threading.Thread(target=decode, daemon=True)
    holder.start()
    time.sleep(0.3)
    llm.generate("y")

def handler_that_raises():
    import signal
    def handler(*_):
        raise LookupError("from the handler")
    signal.signal(signal.SIGINT, handler)
    decode()

print("at", flush=True)
try:
    globals()[sys.argv[2]]()
    print("done", flush=True)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
except LookupError as error:
    print(error, flush=True)
llm.cancel()
again = llm.generate([1, 2, 3], max_tokens=5, seed=1).tokens
print("usable" if again == expected else f"{again} != {expected}", flush=True)
"""


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained context of 16,384 tokens, and slow enough that everything here takes many seconds undisturbed."""
    model = TinyModel(n_vocab=270, vocabulary=True, n_ctx=16384, n_layer=12, n_embd=256, n_ff=512, head_dim=64, seed=1)
    return write(tmp_path_factory.mktemp("models") / "long.gguf", model)


PLACES = ("prefill", "decode", "stream", "score", "queue", "handler_that_raises")
QUICK_ON_GPU = ("prefill", "score")  # done there before they could be interrupted


@pytest.mark.parametrize(
    ("device", "place"),
    [("cpu", place) for place in PLACES]
    + [pytest.param("cuda", place, marks=pytest.mark.gpu) for place in PLACES if place not in QUICK_ON_GPU],
)
def test_an_interrupt_stops_the_work(long_model: Path, place: str, device: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(long_model), place, device],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "at\n":
        pytest.fail(process.communicate()[1])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert err == ""
    assert out.split("\n")[0] == ("from the handler" if place == "handler_that_raises" else "KeyboardInterrupt")
    assert out.split("\n")[1] == "usable"
    assert process.returncode == 0


def test_an_interrupt_while_loading(tmp_path: Path) -> None:
    """Raised in the progress function, as the handler of Ctrl-C does."""
    from fasa_py.gguf import GGUF
    from fasa_py.model import Model

    def interrupt(_fraction: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    path = write(tmp_path / "tiny.gguf", TinyModel())
    with GGUF(path) as gguf:
        with pytest.raises(KeyboardInterrupt):
            Model(gguf, progress=interrupt)
        assert Model(gguf).info.n_layer == 2
