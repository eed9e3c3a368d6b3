"""Memory that a model and its context take, known before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine import Table as RandomTable

import fasa_py
from fasa_py.cli import main
from fasa_py.cli.common import attention
from fasa_py.gguf import GGUF
from fasa_py.llama import default_model
from fasa_py.memory import memory_size
from fasa_py.method import Method
from fasa_py.model import ContextSettings, Model, Plan, build_info, gpus

EMULATED = "CUDA on the CPU" in build_info().cuda_reason
emulated = pytest.mark.skipif(not EMULATED, reason="needs the library with CUDA on the CPU (tests/cuda_on_cpu)")


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


def _sizes(plan: Plan) -> Plan:
    """Without what depends on the moment."""
    return replace(plan, n_ctx_max=0, device_available=0, host_available=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"n_ctx": 77, "n_batch": 33, "n_seq": 2}, {"method": "oracle", "n_ctx": 50}, {"table": True, "kv": "split"}],
)
def test_a_plan_before_loading_is_that_of_the_loaded(tiny_path: Path, options: dict[str, Any], device: str) -> None:
    if options.get("table"):
        t = RandomTable.random(2, 4, 2, 10)
        options = {**options, "table": t}
    before = fasa_py.plan(tiny_path, device=device, **options)
    with fasa_py.Llama(tiny_path, device=device, **options) as llm:
        assert _sizes(llm.plan) == _sizes(before)
        assert before.fits


def test_a_context_that_does_not_fit_is_refused_before_loading(
    tiny_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LoadedAnyway(Model):
        def __init__(self, *args: Any, plan_only: bool = False, **options: Any) -> None:
            assert plan_only
            super().__init__(*args, plan_only=plan_only, **options)

    monkeypatch.setattr("fasa_py.llama.Model", LoadedAnyway)
    missing = fasa_py.plan(tiny_path, n_ctx=2**27, n_seq=500, device=device)
    assert not missing.fits
    with pytest.raises(fasa_py.OutOfMemoryError, match=r"\d+ bytes are missing; n_ctx = \d+ would fit"):
        fasa_py.Llama(tiny_path, n_ctx=2**27, n_seq=500, device=device)


def test_a_model_for_plans_makes_no_context(tiny_path: Path, device: str) -> None:
    from fasa_py.model import Context

    model = Model(GGUF(tiny_path), device, plan_only=True)
    assert model.info.n_layer == 2
    with pytest.raises(ValueError, match="plans only"):
        Context(model, ContextSettings())


def test_damaged_files_are_refused_by_plans(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + bytes([255] * 100))
    with pytest.raises(fasa_py.FormatError):
        fasa_py.plan(path)
    with pytest.raises(OSError, match="cannot open"):
        fasa_py.plan(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("value", "n_bytes"),
    [(None, 0), (123, 123), ("8GiB", 8 << 30), ("8G", 8 << 30), ("8GB", 8 * 10**9), ("1.5 MiB", 3 << 19), ("7", 7)],
)
def test_memory_sizes(value: Any, n_bytes: int) -> None:
    assert memory_size(value) == n_bytes


@pytest.mark.parametrize("value", ["", "8 apples", "-1", "GiB", 0, -5, True, 1.5, "0", "8gib", "9999999TiB"])
def test_not_memory_sizes(value: Any) -> None:
    with pytest.raises(ValueError, match="vram must be"):
        memory_size(value)


def test_a_limit_is_never_left_aside(tiny_path: Path) -> None:
    with pytest.raises(ValueError, match=r"limit of device memory.*CPU"):
        fasa_py.Llama(tiny_path, device="cpu", vram="8GiB")
    if not build_info().cuda:
        for load in (fasa_py.Llama, fasa_py.plan):
            with pytest.raises(fasa_py.UnsupportedError, match=r"no CUDA backend.*device='cpu'"):
                load(tiny_path, device="cuda", vram="8GiB")


def _python(program: str, *arguments: object, **environment: str) -> list[str]:
    """Lines that a program prints, run without what conftest.py makes of device="auto"."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


_AUTO = """
import logging, sys
import fasa_py
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
llm = fasa_py.Llama(sys.argv[1])
print(llm.device)
print(llm)
"""


def test_the_device_is_said(tiny_path: Path) -> None:
    lines = _python(_AUTO, tiny_path)
    device = lines[-2]
    assert device.startswith("cuda:0 (" if gpus()[0] else "cpu (")
    assert lines.count(f"device auto: using {device}") == 1
    assert device in lines[-1] and "n_ctx 256" in lines[-1]
    assert gpus()[1] == "" or any("no GPU can be used" in line or "no CUDA backend" in line for line in lines)


_AUTO_LIMIT = """
import sys
import fasa_py
for load in (fasa_py.Llama, fasa_py.plan):
    try:
        load(sys.argv[1], vram="8GiB")
    except fasa_py.UnsupportedError as error:
        print(error)
"""


@pytest.mark.skipif(build_info().cuda, reason="for builds without CUDA")
def test_a_limit_is_never_left_aside_by_auto(tiny_path: Path) -> None:
    lines = _python(_AUTO_LIMIT, tiny_path)
    assert len(lines) == 2 and all("limit of device memory" in line and "no CUDA backend" in line for line in lines)


def test_gpus() -> None:
    found, reason = gpus()
    assert bool(found) != bool(reason)
    assert len(found) == 0 or build_info().cuda
    for gpu in found:
        assert gpu.name and gpu.memory_bytes > 0 and gpu.n_multiprocessors > 0 and gpu.runtime_version >= 12000


def test_info_shows_a_plan(tiny_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert main(["info", str(tiny_path)]) == 0
    assert "Plan" not in capsys.readouterr().out
    assert main(["info", str(tiny_path), "--n-ctx", "100", "--device", device]) == 0
    out = capsys.readouterr().out
    p = fasa_py.plan(tiny_path, n_ctx=100, device=device)
    for fact in ("Plan for 100 tokens", f"{p.kv_bytes:,}", f"{p.host_bytes:,}", "it fits; largest context that fits"):
        assert fact in out


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {}, {"method": "snapkv"}, {"method": "h2o"}, {"method": "quest"}, {"method": "rkv", "n_seq": 2},
        {"method": "fasa"}, {"method": "fasa", "k_dom": "int8"}, {"method": "fasa", "kv": "split", "n_batch": 32},
        {"method": "fasa", "kv": "split", "k_dom": "q4", "kv_cache_rows": 0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.alone
def test_what_is_taken_is_what_was_planned(tiny_path: Path, options: dict[str, Any]) -> None:
    def available() -> int:
        return fasa_py.plan(tiny_path, device="cuda").device_available

    if options.get("method") == "fasa":
        options = {**options, "table": RandomTable.random(2, 4, 2, 10)}
    # CUDA loads kernels when they are first used, and keeps their code.
    with fasa_py.Llama(tiny_path, device="cuda", n_ctx=1500, **options) as llm:
        llm.generate("abc" * 100, max_tokens=4, temperature=0)
    before = available()
    with fasa_py.Llama(tiny_path, device="cuda", n_ctx=1500, **options) as llm:
        taken = before - available()
        planned = llm.plan.device_bytes
        assert taken <= planned
        if EMULATED:  # which counts bytes, and none for CUDA itself
            assert taken == planned - llm.plan.system_device_bytes
        llm.generate("abc" * 100, max_tokens=4, temperature=0)
        assert before - available() == taken
    assert available() == before


@pytest.mark.gpu
def test_a_limit(tiny_path: Path) -> None:
    p = fasa_py.plan(tiny_path, n_ctx=100, device="cuda")
    assert fasa_py.plan(tiny_path, n_ctx=100, device="cuda", vram=p.device_bytes).fits
    with fasa_py.Llama(tiny_path, n_ctx=100, device="cuda", vram=p.device_bytes) as llm:
        assert llm.generate("abc" * 20, max_tokens=5, temperature=0).text
        assert llm.plan.device_available == p.device_bytes
        with pytest.raises(fasa_py.OutOfMemoryError, match="bytes are missing"):
            fasa_py.model.Context(llm._model, ContextSettings(n_ctx=100))  # a second one
    short = fasa_py.plan(tiny_path, n_ctx=100, device="cuda", vram=p.device_bytes - 1)
    assert (short.fits, short.device_missing) == (False, 1)
    with pytest.raises(fasa_py.OutOfMemoryError, match=r"device memory.* 1 bytes are missing; n_ctx = \d+ would fit"):
        fasa_py.Llama(tiny_path, n_ctx=100, device="cuda", vram=p.device_bytes - 1)
    with fasa_py.Llama(tiny_path, n_ctx=short.n_ctx_max, device="cuda", vram=p.device_bytes - 1) as llm:
        assert llm.n_ctx == short.n_ctx_max < 100


@pytest.mark.gpu
def test_the_rest_of_the_cache_goes_to_the_host_where_it_does_not_fit(tiny_path: Path) -> None:
    """kv="auto" is FASA-C where that fits, else FASA-M, else an error."""
    method = Method("fasa", n_tip=4, n_fac=20, n_sink=1, n_recent=4, dense_layers=0, dense_below=0)
    options: dict[str, Any] = {
        "device": "cuda", "n_ctx": 10000, "n_seq": 8, "method": method, "table": RandomTable.random(2, 4, 2, 10),
        "kv_cache_rows": 0,
    }  # fmt: skip
    device, split = (fasa_py.plan(tiny_path, kv=kv, **options).device_bytes for kv in ("device", "split"))
    assert split < device
    answers = []
    for vram, kv in ((device, "device"), (device - 1, "split"), (split, "split")):
        p = fasa_py.plan(tiny_path, vram=vram, **options)
        assert (p.kv, p.fits, p.device_bytes) == (kv, True, device if kv == "device" else split)
        with fasa_py.Llama(tiny_path, vram=vram, **options) as llm:
            assert llm.plan.kv == kv and ("split KV cache" in repr(llm)) == (kv == "split")
            result = llm.generate("abc" * 20, max_tokens=5, temperature=0)
            answers.append(result.text)
            s = result.sparsity
            assert (s.rows_missed > 0) == (s.pcie_bytes_per_step > 0) == (kv == "split")
            assert s.hit_rate == s.rows_hit == 0
            assert ("over the bus; 0% of rows were on the GPU" in attention(llm, s)) == (kv == "split")
    assert len(set(answers)) == 1
    p = fasa_py.plan(tiny_path, vram=split - 1, **options)
    assert (p.fits, p.device_missing) == (False, 1)
    with pytest.raises(fasa_py.OutOfMemoryError, match=r" 1 bytes are missing; n_ctx = \d+ would fit"):
        fasa_py.Llama(tiny_path, vram=split - 1, **options)


@pytest.mark.gpu
def test_a_method_whose_tables_do_not_fit_is_not_taken(tiny_path: Path) -> None:
    options: dict[str, Any] = {"device": "cuda", "n_ctx": 4000, "method": "full"}
    vram = fasa_py.plan(tiny_path, **options).device_bytes
    with fasa_py.Llama(tiny_path, vram=vram, **options) as llm:
        before = llm.generate("abc" * 20, max_tokens=5, temperature=0).text
        with pytest.raises(fasa_py.OutOfMemoryError):
            llm.set_method("quest")
        assert llm.method.name == "full"
        llm.reset()
        assert llm.generate("abc" * 20, max_tokens=5, temperature=0).text == before


_BREAK_EVEN = """
import sys
import fasa_py
print(fasa_py.Llama(sys.argv[1], device="cuda", n_ctx=64).method.dense_below)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not EMULATED, reason="only the emulated GPU can have memory of any clock")
def test_slow_memory_makes_sparse_steps_pay_early(tiny_path: Path) -> None:
    with fasa_py.Llama(tiny_path, device="cpu", n_ctx=64) as llm:
        kv_bytes = 4 * llm.info.n_head_kv * llm.info.head_dim
    for clock in (2_000_000, 20_000_000):
        bandwidth = 0.82 * 2000 * clock * 128 / 8
        expected = min(8192, int(7.3e-6 * bandwidth / (7 / 8 * kv_bytes)))
        assert _python(_BREAK_EVEN, tiny_path, FASA_ON_CPU_CLOCK=str(clock)) == [str(expected)]
    assert _python(_BREAK_EVEN, tiny_path) == ["8192"]


@pytest.mark.gpu
def test_page_locked_memory_leaves_some_to_others() -> None:
    there = fasa_py.plan(default_model(), n_ctx=64, device="cpu").host_available
    page_locked = fasa_py.plan(default_model(), n_ctx=64, device="cuda").host_available
    assert 0.8 * there < page_locked < 0.95 * there


@pytest.mark.gpu
def test_a_context_that_fits_to_the_byte_is_the_largest() -> None:
    vram = fasa_py.plan(default_model(), n_ctx=1000, device="cuda").device_bytes
    for n_ctx in (999, 1000):  # not 960, the next multiple of 64
        p = fasa_py.plan(default_model(), n_ctx=n_ctx, device="cuda", vram=vram)
        assert (p.fits, p.n_ctx_max) == (True, n_ctx)


@pytest.mark.gpu
def test_rows_of_a_head_that_cannot_be_copied_are_refused() -> None:
    options: dict[str, Any] = {"device": "cuda", "kv": "split", "k_dom": "int8"}  # 512 bytes a row
    assert fasa_py.plan(default_model(), n_ctx=2**22 - 1, **options).n_ctx == 2**22 - 1
    with pytest.raises(fasa_py.UnsupportedError, match=f"n_ctx is {2**22}.* {2**22 - 1} tokens at most"):
        fasa_py.plan(default_model(), n_ctx=2**22, **options)


@pytest.mark.gpu
@pytest.mark.parametrize(("n_ctx", "prefers"), [(300, "device"), (4000, "split")])
def test_where_neither_placement_fits_the_one_with_more_room_is_named(n_ctx: int, prefers: str) -> None:
    def plan(kv: str, n_ctx: int | None = 16384) -> Plan:
        return fasa_py.plan(demo, n_ctx=n_ctx, kv=kv, vram=vram, device="cuda")

    demo = default_model()
    vram = fasa_py.plan(demo, n_ctx=n_ctx, kv="device", device="cuda").device_bytes
    found, others = plan("auto"), [plan(kv).n_ctx_max for kv in ("device", "split")]
    assert (found.fits, found.kv, found.n_ctx_max) == (False, prefers, max(others))
    assert min(others) < max(others)
    for largest in (plan("auto", found.n_ctx_max), plan("auto", None)):
        assert largest.fits and largest.n_ctx == found.n_ctx_max and largest.n_ctx % 64 == 0


@pytest.mark.gpu
def test_weights_that_do_not_fit_are_not_uploaded(tiny_path: Path) -> None:
    seen: list[float] = []
    with pytest.raises(fasa_py.OutOfMemoryError, match=r"the weights take .* bytes are missing"):
        Model(GGUF(tiny_path), "cuda", progress=seen.append, vram=1 << 20)
    assert seen == []
    with pytest.raises(fasa_py.OutOfMemoryError, match=r"weights.*no n_ctx would fit"):
        fasa_py.Llama(tiny_path, device="cuda", vram="1MiB")


@pytest.mark.gpu
def test_the_upload_shows_progress(tiny_path: Path) -> None:
    seen: list[float] = []
    Model(GGUF(tiny_path), "cuda", progress=seen.append)
    assert seen == sorted(seen) and 0.5 < seen[-1] <= 1


_FAULT = """
import sys
import fasa_py
path = sys.argv[1]
llm = fasa_py.Llama(path, device="cuda")
for _ in range(2):
    try:
        llm.generate("abc" * 20, max_tokens=3)
    except fasa_py.DeviceError as error:
        assert "CUDA" in str(error), error
        print(error)
try:
    fasa_py.Llama(path, device="cuda")
except fasa_py.DeviceError as error:
    print("again")
llm.close()
print(fasa_py.Llama(path, device="cpu").generate("abc", max_tokens=3, temperature=0).tokens)
"""


_COUNTS = """
import fasa_py
llm = fasa_py.Llama(device="cuda", n_ctx=100, kv="split", dense_layers=0)
try:
    llm.generate("abc" * 20, max_tokens=3)
except fasa_py.DeviceError:
    stats = llm._context.stats()
    print(stats.rows_hit, stats.n_decode)
"""


@emulated
def test_counters_are_there_after_a_fault() -> None:
    assert _python(_COUNTS, FASA_ON_CPU_FAULT="round_rows") == ["0 0"]


@emulated
def test_the_cpu_works_after_a_fault(tiny_path: Path) -> None:
    first, second, again, tokens = _python(_FAULT, tiny_path, FASA_ON_CPU_FAULT="round_rows")
    assert "kernel round_rows" in first and "kernel round_rows" in second and again == "again"
    with fasa_py.Llama(tiny_path, device="cpu") as llm:
        assert str(llm.generate("abc", max_tokens=3, temperature=0).tokens) == tokens


_NO_GPU = """
import sys
import fasa_py
path = sys.argv[1]
plan = fasa_py.plan(path, n_ctx=100, vram="8GiB")
assert plan.fits and plan.device_available == 8 << 30 and plan.device_bytes > plan.weights_device_bytes > 0
for device in ("auto", "cuda"):
    try:
        fasa_py.Llama(path, n_ctx=100, vram="8GiB", device=device)
    except fasa_py.DeviceError as error:
        print(error)
llm = fasa_py.Llama(path)
print(llm.device)
"""


@emulated
def test_plans_where_no_gpu_is_visible(tiny_path: Path) -> None:
    auto, cuda, device = _python(_NO_GPU, tiny_path, FASA_ON_CPU_GPUS="0")
    assert "no GPU" in auto and "no GPU" in cuda and device.startswith("cpu")
    info = "import sys; from fasa_py.cli import main; main(['info', sys.argv[1], '--vram', '8GiB'])"
    assert "assumed: one of 132 multiprocessors" in "\n".join(_python(info, tiny_path, FASA_ON_CPU_GPUS="0"))


_COUNT = "from fasa_py.model import gpus; print(*gpus())"


@emulated
def test_why_no_gpu_is_visible() -> None:
    assert "no NVIDIA driver is installed" in _python(_COUNT, FASA_ON_CPU_DRIVER="0")[0]
    assert "driver is for CUDA 12.4, older than the 13.0" in _python(_COUNT, FASA_ON_CPU_DRIVER="12040")[0]


_SYNCHRONOUS = """
import sys
import fasa_py
llm = fasa_py.Llama(sys.argv[1], device="cuda")
try:
    print(llm.generate("abc" * 20, max_tokens=3, temperature=0).tokens)
except fasa_py.DeviceError as error:
    print(error)
"""


@emulated
def test_launches_that_are_waited_for_name_the_kernel(tiny_path: Path) -> None:
    usual, waited_for = (_python(_SYNCHRONOUS, tiny_path, FASA_CUDA_SYNC=asked) for asked in "01")
    assert usual == waited_for
    found_late, found_at_once = (
        _python(_SYNCHRONOUS, tiny_path, FASA_CUDA_SYNC=asked, FASA_ON_CPU_FAULT="round_rows")[0] for asked in "01"
    )
    assert found_at_once.startswith("CUDA: round_rows: ")
    assert found_late.startswith("CUDA: one of these kernels (FASA_CUDA_SYNC=1 tells which): ")
    assert "round_rows" in found_late
