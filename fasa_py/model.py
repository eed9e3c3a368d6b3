"""The engine's handles as Python objects: :class:`Model` (weights), :class:`Context` (KV cache), :class:`Sampler`.

Thin: one method a C function, arrays instead of pointers, exceptions instead of statuses. Not thread-safe; that is
:class:`fasa_py.Llama`'s part. Signal handlers run during long calls, because the engine polls a Python callback.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._native import check, ffi, lib, text
from .errors import CancelledError
from .gguf import GGUF, path_bytes
from .method import Method, k_dom_number, kv_name, kv_placement
from .sampling import SamplingParams

if TYPE_CHECKING:
    from .table import Table

Progress = Callable[[float], None]
Tokens = Sequence[int] | npt.NDArray[np.int32]

_LOG_LEVELS = {
    lib.FASA_LOG_DEBUG: logging.DEBUG,
    lib.FASA_LOG_INFO: logging.INFO,
    lib.FASA_LOG_WARN: logging.WARNING,
    lib.FASA_LOG_ERROR: logging.ERROR,
}


@ffi.callback("fasa_log_fn")
def _log(level: int, message: Any, _user: Any) -> None:
    logging.getLogger("fasa_py").log(_LOG_LEVELS.get(level, logging.INFO), "%s", text(message))


lib.fasa_log_set(_log, ffi.NULL)


@dataclass(frozen=True)
class ModelInfo:
    """What the engine knows about a loaded model; counts are named as in GGUF."""

    arch: str
    device: str  # "cpu (avx2, 8 threads)"
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    rope_freq_base: float
    rope_layout: str
    rope_scaling: str
    n_threads: int
    n_params: int
    n_bytes: int
    fingerprint: int


@dataclass(frozen=True)
class Plan:
    """Bytes that a model with one context takes, all of them known before anything is loaded.

    Device memory is a GPU's own. On the CPU there is none: its figures are 0, and all is host memory. What is available
    is so for all of it: what the model holds already is counted in. With a GPU host memory is page-locked, and an
    eighth of what is free counts as not available. ``n_ctx_max`` is rounded down to a multiple of 64, but not below
    ``n_ctx``, nor if it is less than that.
    """

    n_ctx: int  # asked or chosen
    n_ctx_max: int  # the largest that fits; 0: none
    fits: bool
    kv: str  # "device" or "split", asked or chosen
    weights_device_bytes: int  # uploaded
    weights_host_bytes: int  # mapped from the file, shared between processes; on the CPU only
    kv_device_bytes: int
    kv_host_bytes: int
    kv_dom_bytes: int  # the part that dominant keys take: on the device, wherever the rest lies
    scratch_device_bytes: int  # activations, workspace, cache of rows
    row_cache_bytes: int  # the part that the device's cache of rows of a split KV cache takes
    scratch_host_bytes: int  # logits, tokens, page-locked buffers; on the CPU activations and workspace too
    system_device_bytes: int  # what CUDA takes itself: its context, kernels, graphs; an upper bound
    device_bytes: int  # the sums of the above
    host_bytes: int
    device_available: int
    host_available: int
    device_missing: int  # 0: it fits there
    host_missing: int

    @property
    def weights_bytes(self) -> int:
        """On device and host."""
        return self.weights_device_bytes + self.weights_host_bytes

    @property
    def kv_bytes(self) -> int:
        """On device and host."""
        return self.kv_device_bytes + self.kv_host_bytes

    @property
    def scratch_bytes(self) -> int:
        """On device and host."""
        return self.scratch_device_bytes + self.scratch_host_bytes


@dataclass(frozen=True)
class Stats:
    """What a context has done since it was made. Layer passes, positions and bytes are those of decode steps."""

    n_prefill: int  # tokens processed in calls of several
    n_decode: int  # tokens processed in calls of one
    prefill_s: float
    decode_s: float
    decode_bytes: int  # weights and KV cache
    layers_dense: int
    layers_sparse: int
    tokens_selected: int  # positions, summed over lists and sparse layers
    key_bytes: int  # of the KV cache, read
    value_bytes: int
    # Of a split KV cache on a GPU: rows that decode steps attended to, found in the device's cache of rows or not, and
    # bytes of rows that went over the bus, by all steps, in either direction.
    rows_hit: int
    rows_missed: int
    pcie_bytes: int


@dataclass(frozen=True)
class BuildInfo:
    """How the library was built and what it found on this machine."""

    version: str
    compiler: str
    cuda: bool
    cuda_reason: str
    cpu_isa: str
    cpu_isa_reason: str
    cpu_isa_built: str
    cpu_name: str
    n_cores: int
    memory_available: int


def _fields(kind: type, struct: Any) -> Any:
    """A dataclass of the given kind from the C struct with the same field names."""
    values = {name: getattr(struct, name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    return kind(**{name: text(v) if isinstance(v, ffi.CData) else v for name, v in values.items()})


def _plan(struct: Any) -> Plan:
    plan: Plan = _fields(Plan, struct)
    return replace(plan, kv=kv_name(struct.kv))


def build_info() -> BuildInfo:
    """How the library was built, which instruction set is in use and why."""
    out = ffi.new("fasa_build_info *")
    lib.fasa_build_info_get(out)
    return _fields(BuildInfo, out)


@dataclass(frozen=True)
class GpuInfo:
    """A GPU as the CUDA backend sees it. Versions: 12040 is CUDA 12.4."""

    name: str
    capability_major: int
    capability_minor: int
    n_multiprocessors: int
    memory_bytes: int
    driver_version: int  # the newest CUDA that the driver serves
    runtime_version: int  # that the library was built with
    supported: bool  # the kernels run on it


def gpus() -> tuple[list[GpuInfo], str]:
    """The GPUs that this library can see; and when there are none, why."""
    reason = ffi.new("const char **")
    n = lib.fasa_gpu_count(reason)
    why = text(reason[0])
    found = []
    for index in range(n):
        out = ffi.new("fasa_gpu_info *")
        check(lib.fasa_gpu_info_get(out, index))
        found.append(_fields(GpuInfo, out))
    return found, why


def supported() -> tuple[str, str]:
    """Architectures and tensor types that the engine implements, comma-separated."""
    return text(lib.fasa_supported_archs()), text(lib.fasa_supported_dtypes())


class _Interrupt:
    """Why a call should stop: ``cancelled`` by another thread, or the ``error`` that a Python callback raised."""

    def __init__(self) -> None:
        self.cancelled = False
        self.error: BaseException | None = None

    def poll(self, _user: Any) -> bool:
        # Entering Python is what lets a pending signal run its handler, which may raise right here.
        return self.cancelled

    def stash(self, _kind: type, error: BaseException, _traceback: TracebackType | None) -> None:
        self.error = error

    def progress_callback(self, progress: Progress | None) -> Any:
        """A ``fasa_progress_fn`` that calls progress and stops the call when it raises."""

        def call(fraction: float, _user: Any) -> bool:
            if progress is not None:
                progress(fraction)
            return not self.cancelled

        return ffi.callback("fasa_progress_fn", call, error=False, onerror=self.stash)

    def check(self, status: int) -> None:
        """Raise what a callback raised, or the exception of the status."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        check(status)


def parse_device(device: str) -> tuple[int, int]:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as (device kind, index).

    :raises ValueError: for any other text
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None or (match[2] and match[1] != "cuda"):
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "cuda:<index>", not {device!r}')
    kinds = {"auto": lib.FASA_DEVICE_AUTO, "cpu": lib.FASA_DEVICE_CPU, "cuda": lib.FASA_DEVICE_CUDA}
    return kinds[match[1]], int(match[2] or 0)


class Model:
    """Weights on a device. Immutable.

    :param gguf: the open file
    :param device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    :param n_threads: CPU threads; None: all cores usable by this process
    :param progress: called with the fraction loaded; an exception in it stops the load
    :param ignore_table: load as if the file carried no calibration table, so that a damaged one can be replaced
    :param vram: bytes of the GPU's memory that may be taken, all that CUDA takes counted in; 0: all that is free
    :param plan_only: check file and device, but take no memory: for :attr:`info`, :meth:`plan` and tables. With vram,
        where no GPU can be seen, one is assumed
    :raises OutOfMemoryError: the weights do not fit; nothing was uploaded
    :raises UnsupportedError: the file or the device is one that this build does not implement
    :raises DeviceError: there is no GPU that can be used
    """

    def __init__(
        self,
        gguf: GGUF,
        device: str = "auto",
        n_threads: int | None = None,
        progress: Progress | None = None,
        ignore_table: bool = False,
        vram: int = 0,
        plan_only: bool = False,
    ) -> None:
        interrupt = _Interrupt()
        callback = interrupt.progress_callback(progress)
        params = ffi.new("fasa_model_params *")
        lib.fasa_model_params_default(params)
        params.device, params.device_index = parse_device(device)
        params.n_threads = n_threads or 0
        params.progress = callback
        params.ignore_table = ignore_table
        params.device_memory_max = vram
        params.plan_only = plan_only
        out = ffi.new("fasa_model **")
        interrupt.check(lib.fasa_model_load(out, gguf._handle, params))
        self._handle: Any = ffi.gc(out[0], lib.fasa_model_free)
        struct = ffi.new("fasa_model_info *")
        lib.fasa_model_info_get(struct, self._handle)
        self.info: ModelInfo = _fields(ModelInfo, struct)

    @property
    def has_table(self) -> bool:
        """Whether the file carries a calibration table."""
        return bool(lib.fasa_model_has_table(self._handle))

    def plan(self, settings: ContextSettings | None = None) -> Plan:
        """What a context with these settings would take."""
        out = ffi.new("fasa_plan *")
        check(lib.fasa_plan_get(out, self._handle, (settings or ContextSettings()).params()))
        return _plan(out)

    def check_plan(self, settings: ContextSettings) -> None:
        """Nothing, if a context with these settings fits.

        :raises OutOfMemoryError: it does not; the text names what is missing and the largest n_ctx that fits
        """
        out = ffi.new("fasa_plan *")
        check(lib.fasa_plan_get(out, self._handle, settings.params()))
        check(lib.fasa_plan_check(out))

    def close(self) -> None:
        """Let go of the weights; they are freed when no context and no call uses them any more."""
        self._handle = None


@dataclass(frozen=True)
class ContextSettings:
    """What a context is made with. A size of 0 is the default."""

    n_ctx: int = 0
    n_batch: int = 0
    n_seq: int = 0
    method: Method = field(default_factory=Method)
    table: Table | None = None  # None: the file's own
    kv: str = "auto"  # or "device", "split": dominant keys on the device, the rest in host memory
    k_dom: str = "f16"  # how dominant keys are stored for ranking; or "int8", "q4"
    kv_cache_rows: int | None = None  # of a split cache: rows that the device keeps; None: 4 n_fac; 0: none

    def params(self) -> Any:
        """``fasa_context_params *``; valid as long as the table is."""
        params = ffi.new("fasa_context_params *")
        lib.fasa_context_params_default(params)
        params.n_ctx, params.n_batch, params.n_seq = self.n_ctx, self.n_batch, self.n_seq
        self.method.write_to(ffi.addressof(params, "method"))
        params.table = ffi.NULL if self.table is None else self.table._handle
        params.kv = kv_placement(self.kv)
        params.k_dom = k_dom_number(self.k_dom)
        params.kv_cache_rows = 0 if self.kv_cache_rows is None else self.kv_cache_rows or -1
        return params


class Context:
    """KV cache and scratch of n_seq sequences of up to n_ctx tokens each.

    :raises OutOfMemoryError: what was asked does not fit; the text has the numbers
    :raises ValueError: the method needs a table that there is not, or a setting does not fit the model
    :raises UnsupportedError: kv="split", or another k_dom than f16, with a method that has no dominant keys; kv="split"
        on a GPU with an n_ctx at which a KV head's rows in host memory are 2 GiB or more
    """

    def __init__(self, model: Model, settings: ContextSettings | None = None) -> None:
        settings = settings or ContextSettings()
        out = ffi.new("fasa_context **")
        check(lib.fasa_context_create(out, model._handle, settings.params()))
        self._handle: Any = ffi.gc(out[0], lib.fasa_context_free)
        self._interrupt = _Interrupt()
        self._abort = ffi.callback("fasa_abort_fn", self._interrupt.poll, error=True, onerror=self._interrupt.stash)
        lib.fasa_context_abort_set(self._handle, self._abort, ffi.NULL)
        plan = ffi.new("fasa_plan *")
        lib.fasa_context_plan(plan, self._handle)
        self.plan = _plan(plan)
        self.n_ctx = self.plan.n_ctx
        self.n_seq = max(1, settings.n_seq)
        self.n_vocab = model.info.n_vocab
        self._one = ffi.new("int32_t[1]")

    def close(self) -> None:
        """Let go of the memory; it is freed when no call uses it any more. Later calls raise TypeError."""
        self._handle = None

    # -- method and counters ---------------------------------------------------------------------------------------

    @property
    def method(self) -> Method:
        """The one in use, every setting resolved."""
        out = ffi.new("fasa_method_params *")
        lib.fasa_method_get(out, self._handle)
        return Method.read_from(out)

    def set_method(self, method: Method) -> None:
        """Decode steps from now on attend this way. The sequences stay, and so does the layout of the cache."""
        params = ffi.new("fasa_method_params *")
        method.write_to(params)
        check(lib.fasa_method_set(self._handle, params))

    def stats(self) -> Stats:
        """What this context has done."""
        out = ffi.new("fasa_stats *")
        lib.fasa_stats_get(out, self._handle)
        return _fields(Stats, out)

    # -- running ---------------------------------------------------------------------------------------------------

    def decode(self, seq: int, tokens: Tokens, progress: Progress | None = None) -> None:
        """Append tokens to a sequence and compute the logits of the last one.

        :raises ContextFullError: the sequence would outgrow n_ctx
        :raises CancelledError: another thread called :meth:`cancel`; finished batches stay in the sequence
        """
        self._start()
        if len(tokens) == 1 and progress is None:
            self._one[0] = tokens[0]
            self._interrupt.check(lib.fasa_decode(self._handle, seq, self._one, 1, ffi.NULL, ffi.NULL))
            return
        array = np.ascontiguousarray(tokens, dtype=np.int32)
        callback = self._interrupt.progress_callback(progress)
        pointer = ffi.from_buffer("int32_t[]", array)
        self._interrupt.check(lib.fasa_decode(self._handle, seq, pointer, len(array), callback, ffi.NULL))

    def score(self, seq: int, tokens: Tokens, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """Append tokens; natural log probability of each given everything before it, float32 ``(n,)``.

        The first is NaN when the sequence was empty.
        """
        self._start()
        array = np.ascontiguousarray(tokens, dtype=np.int32)
        out = np.empty(len(array), dtype=np.float32)
        callback = self._interrupt.progress_callback(progress)
        status = lib.fasa_score(
            ffi.from_buffer("float[]", out), self._handle, seq, ffi.from_buffer("int32_t[]", array), len(array),
            callback, ffi.NULL,
        )  # fmt: skip
        self._interrupt.check(status)
        return out

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the last token processed, float32 ``(n_vocab,)``: a view, valid until the next call."""
        return np.frombuffer(ffi.buffer(lib.fasa_logits(self._handle), 4 * self.n_vocab), dtype=np.float32)

    def sample(self, sampler: Sampler, previous: Any, n_previous: int) -> int:
        """Choose a token from the logits; previous: ``int32_t[]`` with the tokens that the penalties look at."""
        return sampler.sample(lib.fasa_logits(self._handle), self.n_vocab, previous, n_previous)

    # -- stopping --------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """From any thread: end the call in progress, and every later one until :meth:`clear_cancel`."""
        self._interrupt.cancelled = True
        handle = self._handle  # another thread may close the context at any moment; this reference keeps it
        if handle is not None:
            lib.fasa_cancel(handle)

    def clear_cancel(self) -> None:
        self._interrupt.cancelled = False

    def _start(self) -> None:
        self._interrupt.error = None
        if self._interrupt.cancelled:
            raise CancelledError("the call was cancelled from another thread")

    # -- sequences -------------------------------------------------------------------------------------------------

    def length(self, seq: int) -> int:
        """Tokens that the sequence holds."""
        return lib.fasa_seq_length(self._handle, seq)

    def tokens(self, seq: int) -> npt.NDArray[np.int32]:
        """Tokens of the sequence, int32 ``(length,)``, a copy."""
        n = self.length(seq)
        if n == 0:
            return np.empty(0, dtype=np.int32)
        return np.frombuffer(ffi.buffer(lib.fasa_seq_tokens(self._handle, seq), 4 * n), dtype=np.int32).copy()

    def truncate(self, seq: int, n_tokens: int) -> None:
        """Keep the first n_tokens of the sequence."""
        check(lib.fasa_seq_truncate(self._handle, seq, n_tokens))

    def copy(self, dst: int, src: int, n_tokens: int) -> None:
        """Make the first n_tokens of one sequence all that another holds."""
        check(lib.fasa_seq_copy(self._handle, dst, src, n_tokens))

    def save(self, seq: int, path: str | os.PathLike[str]) -> None:
        """Write the sequence (tokens, keys, values) to a file."""
        check(lib.fasa_seq_save(self._handle, seq, path_bytes(path)))

    def load(self, seq: int, path: str | os.PathLike[str]) -> None:
        """Replace the sequence by a saved one.

        :raises FormatError: the file is damaged or was made with another model
        :raises ContextFullError: it holds more than n_ctx tokens
        """
        check(lib.fasa_seq_load(self._handle, seq, path_bytes(path)))


class Sampler:
    """Logits to token, with its own random state: the same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        bias = params.logit_bias or {}
        struct = ffi.new("fasa_sampler_params *")
        lib.fasa_sampler_params_default(struct)
        struct.seed = params.seed
        struct.temperature = params.temperature
        struct.top_k = max(params.top_k, 0)
        struct.top_p = params.top_p
        struct.min_p = params.min_p
        struct.repeat_penalty = params.repeat_penalty
        struct.presence_penalty = params.presence_penalty
        struct.frequency_penalty = params.frequency_penalty
        bias_token = ffi.new("int32_t[]", list(bias) or 1)
        bias_value = ffi.new("float[]", list(bias.values()) or 1)
        struct.bias_token, struct.bias, struct.n_bias = bias_token, bias_value, len(bias)
        out = ffi.new("fasa_sampler **")
        check(lib.fasa_sampler_create(out, struct))
        self._handle: Any = ffi.gc(out[0], lib.fasa_sampler_free)
        self._token = ffi.new("int32_t *")

    def sample(self, logits: Any, n_vocab: int, previous: Any, n_previous: int) -> int:
        """The next token; logits ``float[n_vocab]``, previous ``int32_t[n_previous]``."""
        check(lib.fasa_sample(self._token, self._handle, logits, n_vocab, previous, n_previous))
        return self._token[0]
