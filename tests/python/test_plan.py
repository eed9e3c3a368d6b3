"""Memory that a model and its context take, known before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasa_py.gguf import GGUF
from fasa_py.model import ContextSettings, Model, Plan


@pytest.fixture
def tiny_model(tiny_path: Path, device: str) -> Model:
    return Model(GGUF(tiny_path), device, n_threads=1)


def test_parts_add_up(tiny_model: Model, device: str) -> None:
    for settings in (ContextSettings(), ContextSettings(n_ctx=100, n_batch=30, n_seq=3)):
        p = tiny_model.plan(settings)
        assert p.device_bytes == (
            p.weights_device_bytes + p.kv_device_bytes + p.scratch_device_bytes + p.system_device_bytes
        )
        assert p.host_bytes == p.weights_host_bytes + p.kv_host_bytes + p.scratch_host_bytes
        assert p.weights_bytes == p.weights_device_bytes + p.weights_host_bytes > 0
        info = tiny_model.info
        assert p.kv_bytes == 4 * info.n_layer * info.n_head_kv * info.head_dim * p.n_ctx * max(1, settings.n_seq)
        assert p.fits and p.device_missing == p.host_missing == 0
        assert (p.device_bytes == 0) == (device == "cpu")
        assert p.n_ctx == (settings.n_ctx or info.n_ctx_train) < p.n_ctx_max


def test_largest_context_fits_and_one_more_does_not(tiny_model: Model) -> None:
    def plan(n_ctx: int) -> Plan:
        return tiny_model.plan(ContextSettings(n_ctx=n_ctx, n_seq=64))

    most = plan(2**28)
    assert not most.fits
    assert max(most.device_missing, most.host_missing) > 0
    # What others take meanwhile moves the limit of host memory a little.
    assert plan(most.n_ctx_max * 9 // 10).fits
    assert not plan(most.n_ctx_max * 10 // 9).fits
