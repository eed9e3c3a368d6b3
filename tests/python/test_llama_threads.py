"""``fasa_py.Llama`` in several threads, cancelled and closed."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from devices import each_device
from generating import complete, forced

import fasa_py
from fasa_py import Llama


def test_calls_of_several_threads_queue(tiny_llm: Llama) -> None:
    alone = {i: complete(tiny_llm, [i] * 10, max_tokens=20, seed=i).tokens for i in range(8)}
    results: dict[int, list[int]] = {}
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            if i % 2:
                results[i] = complete(tiny_llm, [i] * 10, max_tokens=20, seed=i).tokens
            else:
                stream = tiny_llm.generate([i] * 10, max_tokens=20, seed=i, stream=True)
                for _ in stream:
                    time.sleep(0.001)
                results[i] = stream.completion.tokens if stream.completion else []
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert results == alone


def test_a_stream_that_moves_between_threads(tiny_llm: Llama) -> None:
    """As in a thread pool: the thread that began it may then wait for its turn, because another one goes on with it."""
    stream = tiny_llm.generate("abc", stream=True, max_tokens=30, logit_bias=forced(ord("a")))
    pieces = [next(stream)]
    moved, waiting = threading.Event(), threading.Event()

    def go_on() -> None:
        pieces.append(next(stream))
        moved.set()
        waiting.wait(10)
        time.sleep(0.05)
        pieces.extend(stream)

    thread = threading.Thread(target=go_on)
    thread.start()
    moved.wait(10)
    waiting.set()
    assert complete(tiny_llm, "b", max_tokens=1).usage.completion_tokens == 1
    thread.join(10)
    assert pieces == ["a"] * 30


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_cancel_from_another_thread(demo_llm: Llama, at: float) -> None:
    """After the first batch of the prompt, and in decoding."""
    reached = threading.Event()

    def progress(fraction: float) -> None:
        if fraction >= at:
            reached.set()
            if fraction < 1:
                thread.join()  # so that the rest of the prompt cannot be done before

    def cancel() -> None:
        reached.wait(60)
        demo_llm.cancel()

    demo_llm.reset()
    thread = threading.Thread(target=cancel)
    thread.start()
    options: dict[str, Any] = {"max_tokens": None, "logit_bias": {4083: -math.inf}, "progress": progress}
    result = complete(demo_llm, [1 + i % 1000 for i in range(1200 if at == 0 else 5)], **options)
    thread.join()
    assert result.finish_reason == "cancelled"
    assert result.timings.prefill_tokens == (512 if at == 0 else 5)
    demo_llm.cancel()  # nothing is in progress: nothing happens
    assert complete(demo_llm, "The sea", max_tokens=2).finish_reason == "length"


def test_cancel_between_the_pieces_of_a_stream(tiny_llm: Llama) -> None:
    stream = tiny_llm.generate("abc", stream=True, logit_bias=forced(ord("a")))
    next(stream)
    tiny_llm.cancel()
    assert list(stream) == []
    assert stream.completion is not None and stream.completion.finish_reason == "cancelled"


@each_device
def test_a_method_is_set_after_a_cancel(tiny_path: Path) -> None:
    """Nothing is in progress that could be cancelled, not even where steps are recorded for the new method."""
    with Llama(tiny_path, n_ctx=64) as llm:
        llm._context.cancel()  # as when it comes at the very end of a call
        llm.set_method("oracle")
        assert llm.method.name == "oracle"
        assert complete(llm, [1, 2, 3], max_tokens=2).finish_reason == "length"


@each_device
def test_cancelling_a_score(tiny_path: Path) -> None:
    with Llama(tiny_path, n_batch=8) as llm:
        with pytest.raises(fasa_py.CancelledError):
            llm.score([1] * 50, progress=lambda _fraction: llm.cancel())
        assert len(llm.score([1] * 50)) == 50


@each_device
def test_a_closed_object(tiny_path: Path) -> None:
    llm = Llama(tiny_path)
    stream = llm.generate("abc", stream=True, logit_bias=forced(ord("a")))
    next(stream)
    llm.close()
    llm.close()
    for call in (lambda: next(stream), lambda: llm.generate("x"), lambda: llm.logits([1]), llm.reset):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    llm.cancel()


@each_device
def test_closing_while_another_thread_works(tiny_path: Path) -> None:
    llm = Llama(tiny_path)
    reasons: list[str] = []

    def work() -> None:
        try:
            while True:
                reasons.append(complete(llm, "abc", max_tokens=None, logit_bias=forced(ord("a"))).finish_reason)
        except RuntimeError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    llm.close()
    thread.join(30)
    assert reasons[-1] == "this Llama is closed"


@each_device
def test_closing_beside_the_waiting_stream_of_another_thread(tiny_path: Path) -> None:
    """Nobody waits for the consumer: neither close() nor the calls that queue behind the stream."""
    llm = Llama(tiny_path)
    streams: list[Any] = []
    queued: list[str] = []

    def begin() -> None:
        streams.append(llm.generate("abc", stream=True, logit_bias=forced(ord("a"))))
        next(streams[0])

    def queue() -> None:
        try:
            llm.generate("b")
        except RuntimeError as error:
            queued.append(str(error))

    for target in (begin, queue):
        thread = threading.Thread(target=target)
        thread.start()
        if target is begin:
            thread.join(10)
    time.sleep(0.1)
    llm.close()
    thread.join(10)
    assert queued == ["this Llama is closed"]
    with pytest.raises(RuntimeError, match="this Llama is closed"):
        next(streams[0])
    assert streams[0].completion.text == "a"


def test_a_stream_of_a_thread_that_is_gone_is_not_this_threads(tiny_llm: Llama) -> None:
    """A new thread may get the number of one that has ended; it waits for its turn like any other."""
    streams: list[Any] = []
    done = threading.Event()

    def begin() -> None:
        streams.append(tiny_llm.generate("abc", stream=True, logit_bias=forced(ord("a"))))
        next(streams[0])

    def call() -> None:
        complete(tiny_llm, "b", max_tokens=1)
        done.set()

    first = threading.Thread(target=begin)
    first.start()
    number = first.ident
    first.join(10)
    second = threading.Thread(target=call)
    second.start()
    if second.ident != number:
        second.join(0.1)  # the system gave it another number: the test holds all the same
    assert not done.wait(0.1)
    streams[0].close()
    assert done.wait(10)
    second.join(10)


def test_closing_from_within_a_call(tiny_llm: Llama) -> None:
    with pytest.raises(RuntimeError, match="has not finished"):
        tiny_llm.generate("a" * 50, progress=lambda _fraction: tiny_llm.close())
    assert complete(tiny_llm, "abc", max_tokens=1).usage.completion_tokens == 1


@each_device
def test_objects_are_freed(tiny_path: Path) -> None:
    """Neither streams nor callbacks keep a Llama alive."""
    llm = Llama(tiny_path)
    stream = llm.generate("abc", stream=True, logit_bias=forced(ord("a")))
    next(stream)
    gone = weakref.ref(llm)
    del llm, stream
    gc.collect()
    assert gone() is None
