"""Calibration [FASA §3]: which frequency chunks of which head predict where attention goes.

>>> table = fasa_py.calibrate("model.gguf")
>>> table.save("model.gguf", "model-fasa.gguf")
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import calibration_text
from ._native import lib
from .calibration_native import best_by_ca, native_calibrate
from .calibration_text import Sample
from .errors import FormatError
from .gguf import GGUF
from .gguf_writer import copy_with_metadata
from .llama import Llama
from .method import Method
from .model import Context, ContextSettings, Progress
from .sampling import whole_number

if TYPE_CHECKING:
    from .calibration_diagnostics import Diagnostics

_VERSION = 1  # of the keys in the file
_PREFIX = "fasa."
_DEFAULT_SAMPLES = 4  # of the package's own text; they share its tokens, which are read once
_READING, _WRITING = 0.35, 0.15  # shares of the progress; the rest is the calibration itself
_INT_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """What a calibration found, and how it was made.

    A chunk is a RoPE pair of dims or, outside RoPE, one dim; ``n_chunk = head_dim - n_rot / 2``. Sets by criterion
    ``mass`` were chosen jointly and in this order: the first ``n_tip`` are the dominant ones.
    """

    ca: npt.NDArray[np.float32]  # contextual agreement, (n_layer, n_head, n_chunk), 0 to 1
    order: npt.NDArray[np.uint16] | None  # chunks by mass, best first, (n_layer, n_head_kv, n_chunk)
    order_head: npt.NDArray[np.uint16] | None  # the same per query head, (n_layer, n_head, n_chunk)
    criterion: str  # the one to use unless told otherwise: "ca" or "mass"
    n_head_kv: int
    chunk_layout: str  # "interleaved" or "half_split"
    k: int  # positions that CA compares
    n_steps: int  # decode steps used, over all samples
    n_samples: int
    source: str  # of the text
    model_sha256: str  # of the tensors' data, in file order
    n_tip: int | None = None  # recommended number of dominant chunks; None: a quarter of them
    diagnostics: Diagnostics | None = None  # not stored in files

    def dominant(self, layer: int, head_kv: int, n_tip: int | None = None, criterion: str | None = None) -> list[int]:
        """The n_tip chunks of a KV head that rank positions, best first.

        :param n_tip: None: as recommended, else a quarter of the chunks
        :param criterion: None: the table's own
        :raises ValueError: the table has no sets by that criterion
        """
        n_chunk = self.ca.shape[2]
        n_tip = whole_number("n_tip", n_tip or self.n_tip or max(1, n_chunk // 4), 1, n_chunk)
        criterion = criterion or self.criterion
        if criterion == "ca":
            return best_by_ca(self.ca, layer, head_kv, self.n_head_kv)[:n_tip].tolist()
        if criterion != "mass" or self.order is None:
            raise ValueError(f'the table has no sets by criterion "{criterion}"')
        return self.order[layer, head_kv, :n_tip].tolist()

    def report(self) -> str:
        """Sparsity of the agreement and, when they were measured, overlap and predictive accuracy, as text."""
        lines = [
            f"CA_{self.k} over {self.n_steps} decode steps of {self.n_samples} sample(s): "
            f"{self.share_above(0.4):.2%} of {self.ca.size:,} chunks have CA > 0.4, "
            f"{1 - self.share_above(0.15, inclusive=True):.1%} have CA < 0.15"
        ]
        if self.diagnostics is not None:
            lines += self.diagnostics.lines()
        return "\n".join(lines)

    def share_above(self, limit: float, inclusive: bool = False) -> float:
        """Share of all chunks whose CA is above a limit."""
        return float(np.mean(self.ca >= limit if inclusive else self.ca > limit))

    # -- files -----------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """The keys of the table in a GGUF file: int (u32), str, or arrays of float32 and uint16."""
        values: dict[str, Any] = {
            "version": _VERSION,
            "criterion": self.criterion,
            "n_chunk": self.ca.shape[2],
            "chunk_layout": self.chunk_layout,
            "ca_scores": self.ca.astype(np.float32).ravel(),
            "chunk_order": None if self.order is None else self.order.astype(np.uint16).ravel(),
            "chunk_order_head": None if self.order_head is None else self.order_head.astype(np.uint16).ravel(),
            "calibration.k": self.k,
            "calibration.n_steps": self.n_steps,
            "calibration.n_samples": self.n_samples,
            "calibration.source": self.source,
            "calibration.model_sha256": self.model_sha256,
            "n_tip": self.n_tip,
        }
        return {_PREFIX + key: value for key, value in values.items() if value is not None}

    def save(
        self,
        gguf_in: str | os.PathLike[str],
        gguf_out: str | os.PathLike[str],
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write a copy of the model's file that carries this table instead of any that it had.

        Tensor data and all other metadata stay byte for byte, so that the copy loads wherever the file did.

        :param force: replace a file that exists
        :raises FormatError: the table was made with other weights than these
        :raises FileExistsError, UnsupportedError, OSError: see :func:`fasa_py.gguf_writer.copy_with_metadata`
        """
        with GGUF(gguf_in) as gguf:
            if tensor_sha256(gguf) != self.model_sha256:
                raise FormatError(f"{gguf.path}: the table was made with other weights: calibrate this file")
        copy_with_metadata(gguf_in, gguf_out, _PREFIX, self.metadata(), force, progress)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """The table that a file carries.

        :raises FormatError: it has none, or a damaged one
        """
        with GGUF(path) as gguf:
            return read_table(gguf)


def read_table(gguf: GGUF) -> CalibrationTable:
    """The table of an open file. :raises FormatError: it has none, or a damaged one"""
    meta = gguf.metadata
    if "fasa.version" not in meta:
        raise FormatError(f"{gguf.path}: the file carries no FASA table (python tools/calibrate_to_gguf.py makes one)")

    def get(key: str, kind: type) -> Any:
        value = meta.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(f'{gguf.path}: metadata key "{key}" is missing or of another type')
        return value

    def array(key: str, n_head: int, dtype: Any) -> Any:
        values = get(key, np.ndarray)
        if values.dtype != dtype or values.size != n_layer * n_head * n_chunk:
            raise FormatError(
                f'{gguf.path}: metadata key "{key}" must have {n_layer * n_head * n_chunk} values of {np.dtype(dtype)}'
            )
        return values.reshape(n_layer, n_head, n_chunk)

    if get("fasa.version", int) != _VERSION:
        raise FormatError(f"{gguf.path}: the FASA table has version {get('fasa.version', int)}, expected {_VERSION}")
    arch = get("general.architecture", str)
    n_layer, n_head = get(f"{arch}.block_count", int), get(f"{arch}.attention.head_count", int)
    n_head_kv = get(f"{arch}.attention.head_count_kv", int) if f"{arch}.attention.head_count_kv" in meta else n_head
    n_chunk = get("fasa.n_chunk", int)
    has_order, has_order_head = "fasa.chunk_order" in meta, "fasa.chunk_order_head" in meta
    return CalibrationTable(
        ca=array("fasa.ca_scores", n_head, np.float32),
        order=array("fasa.chunk_order", n_head_kv, np.uint16) if has_order else None,
        order_head=array("fasa.chunk_order_head", n_head, np.uint16) if has_order_head else None,
        criterion=get("fasa.criterion", str),
        n_head_kv=n_head_kv,
        chunk_layout=get("fasa.chunk_layout", str),
        k=get("fasa.calibration.k", int),
        n_steps=get("fasa.calibration.n_steps", int),
        n_samples=get("fasa.calibration.n_samples", int),
        source=get("fasa.calibration.source", str),
        model_sha256=get("fasa.calibration.model_sha256", str),
        n_tip=get("fasa.n_tip", int) if "fasa.n_tip" in meta else None,
    )


def tensor_sha256(gguf: GGUF) -> str:
    """SHA-256 of the data of all tensors, in file order."""
    digest = hashlib.sha256()
    for tensor in gguf.tensors:
        digest.update(gguf.tensor_data(tensor.name))
    return digest.hexdigest()


# -- calibrating -----------------------------------------------------------------------------------------------------


class _Uncalibrated(Llama):
    """A model as if its file carried no table: what a damaged or old one is replaced from."""

    _ignore_table = True


@dataclass(frozen=True)
class _Plan:
    """The settings of a calibration, checked."""

    k: int
    criterion: str
    n_steps: int  # of each sample
    n_generated: int  # tokens that each sample writes
    n_fac: int
    n_sink: int
    n_recent: int
    per_head: bool


def calibrate(
    model: Llama | str | os.PathLike[str] | None = None,
    *,
    text: str | None = None,
    prompts: Sequence[Any] | None = None,
    source: str | None = None,
    k: int = 256,
    criterion: str = "mass",
    n_steps: int = 64,
    n_samples: int | None = None,
    n_tip: int | None = None,
    n_fac: int = 256,
    n_sink: int = 4,
    n_recent: int = 32,
    per_head: bool = True,
    n_threads: int | None = None,
    device: str = "auto",
    diagnostics: bool = False,
    progress: Progress | None = None,
) -> CalibrationTable:
    """Find each head's dominant chunks: let the model read and write, and compare chunks with heads as it does.

    Parameters
    ----------
    model
        A model file, or a loaded :class:`Llama`, whose own conversations stay as they are; None: the demo model. A
        table that the file carries is not looked at.
    text
        A text to continue. Neither text nor prompts: the text that comes with the package, with questions about it.
    prompts
        Instead, one sample each: texts, lists of token ids, or lists of chat messages.
    source
        What the file says about the text; None: ``default``, ``text`` or ``prompts``.
    k
        Best positions that contextual agreement compares.
    criterion
        ``mass``: chunks chosen jointly for the attention they capture, besides CA. ``ca``: CA alone.
    n_steps
        Decode steps of each sample that are compared. Four times as many tokens are generated, greedily, and the steps
        are spread over them.
    n_samples
        Samples of the text; None: four of the package's own, each with other questions about it, and one of ``text``.
        Not with prompts: each of them is one.
    n_tip
        Number of dominant chunks to recommend in the file; None: no recommendation.
    n_fac, n_sink, n_recent
        Positions that mass is summed over, and those of them at both ends that are in without being ranked: as
        :class:`Method` has them by default.
    per_head
        Choose sets by mass for each query head, too, with as many times fewer steps as heads share a KV head.
    n_threads
        CPU threads; None: all. Of a :class:`Llama`: its own.
    device
        What reads and writes, ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; of a :class:`Llama`: its own. The chunks are
        compared on the CPU.
    diagnostics
        Measure overlap between samples and predictive accuracy, for :meth:`CalibrationTable.report`.
    progress
        Called with the fraction done; an exception in it ends the work.

    Raises
    ------
    ValueError
        A value is out of its range, settings contradict each other, or no step had more than k positions before it: the
        text is too short.
    ContextFullError, OutOfMemoryError
        A prompt does not fit the model's context, or the samples do not fit in memory.
    """
    if text is not None and prompts is not None:
        raise ValueError("give text or prompts, not both")
    if prompts is not None and n_samples is not None:
        raise ValueError("n_samples divides a text; each of the prompts is one sample: leave it out")
    if criterion not in ("ca", "mass"):
        raise ValueError(f'criterion must be "ca" or "mass", not {criterion!r}')
    n_steps = whole_number("n_steps", n_steps, 1, 1 << 16)
    plan = _Plan(
        k=whole_number("k", k, 1, _INT_MAX),
        criterion=criterion,
        n_steps=n_steps,
        n_generated=4 * n_steps,
        n_fac=whole_number("n_fac", n_fac, 1, _INT_MAX),
        n_sink=whole_number("n_sink", n_sink, 0, _INT_MAX),
        n_recent=whole_number("n_recent", n_recent, 0, _INT_MAX),
        per_head=per_head,
    )
    if n_samples is None:
        n_samples = _DEFAULT_SAMPLES if text is None else 1
    n_samples = whole_number("n_samples", n_samples, 1, 4096)
    with nullcontext(model) if isinstance(model, Llama) else _Uncalibrated(
        model, n_ctx=64, n_threads=n_threads, device=device, method="full"
    ) as llm:  # fmt: skip
        if n_tip is not None:
            n_tip = whole_number("n_tip", n_tip, 1, llm.info.head_dim // 2)
        if prompts is not None:
            samples = calibration_text.prompt_samples(llm, prompts, plan.n_generated)
        elif text is not None:
            samples = calibration_text.text_samples(llm, text, n_samples, plan.n_generated)
        else:
            samples = calibration_text.default_samples(llm, n_samples, plan.n_generated)
        source = source or ("prompts" if prompts is not None else "text" if text is not None else "default")
        return _run(llm, samples, plan, source, n_tip, diagnostics, progress or (lambda _: None))


def _run(
    llm: Llama, samples: list[Sample], plan: _Plan, source: str, n_tip: int | None, diagnose: bool, progress: Progress
) -> CalibrationTable:
    n_ctx = max(sample.n_given for sample in samples) + plan.n_generated
    settings = ContextSettings(n_ctx=n_ctx, n_seq=len(samples), method=Method("full"))
    with closing(Context(llm._model, settings)) as context:
        recorder = _Recorder(llm, context, plan.n_generated * len(samples))
        for seq, sample in enumerate(samples):
            n_known = _n_shared(samples[0], sample) if seq > 0 else 0
            context.copy(seq, 0, n_known)
            recorder.run(
                seq, sample, n_known, plan.n_generated, _part(progress, seq, len(samples), _READING + _WRITING)
            )
        rest = _READING + _WRITING
        ca, order, order_head, n_used = native_calibrate(
            context, llm.info, plan.k, plan.n_fac, plan.n_sink, plan.n_recent,
            by_mass=plan.criterion == "mass", per_head=plan.per_head, max_steps=plan.n_steps * len(samples),
            progress=lambda fraction: progress(rest + (1 - rest) * fraction),
        )  # fmt: skip
        found = None
        if diagnose:
            from .calibration_diagnostics import measure

            found = measure(context, llm.info, ca, order, plan.k, plan.n_steps, len(samples), n_tip)
    return CalibrationTable(
        ca=ca, order=order, order_head=order_head, criterion=plan.criterion, n_head_kv=llm.info.n_head_kv,
        chunk_layout=llm.info.rope_layout, k=plan.k, n_steps=n_used, n_samples=len(samples), source=source,
        model_sha256=tensor_sha256(llm._gguf), n_tip=n_tip, diagnostics=found,
    )  # fmt: skip


def _n_shared(first: Sample, other: Sample) -> int:
    """Tokens that another sample begins with as the first one does, without the last few: what is left to read is a
    prompt, not a decode step, and gives the same bits as the whole."""
    a, b = first.turns[0], other.turns[0]
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return max(0, min(n, len(b) - lib.FASA_ROWS_ALIKE))


def _part(progress: Progress, i: int, n: int, share: float) -> Progress:
    """The progress of the i-th of n equal parts of a share."""
    return lambda fraction: progress(share * (i + fraction) / n)


class _Recorder:
    """Gives samples to the model, lets it write, and has the engine record the decode steps."""

    def __init__(self, llm: Llama, context: Context, n_steps: int) -> None:
        self._context, self._ends = context, llm._vocabulary.eog_ids
        context._interrupt.check(lib.fasa_tap_start(context._handle, n_steps))

    def run(self, seq: int, sample: Sample, n_known: int, n_generated: int, progress: Progress) -> None:
        """The tokens to write are shared out over the turns; what short answers leave goes to the last turn.

        The sequence holds the first n_known tokens of the first turn already.
        """
        share, n_left = -(-n_generated // len(sample.turns)), n_generated
        reading, n_given = _READING / (_READING + _WRITING), n_known
        for i, turn in enumerate([sample.turns[0][n_known:], *sample.turns[1:]]):
            before = n_given

            def read(fraction: float, before: int = before, n: int = len(turn)) -> None:
                progress(reading * (before + fraction * n) / sample.n_given)

            self._context.decode(seq, turn, read)
            n_given += len(turn)
            n_left -= self._write(seq, min(share, n_left) if i + 1 < len(sample.turns) else n_left)
            progress(reading * n_given / sample.n_given + (1 - reading) * (1 - n_left / n_generated))

    def _write(self, seq: int, n: int) -> int:
        """Up to n tokens, each the most likely one; ends before a token that ends the text. Returns their number."""
        for i in range(n):
            token = int(self._context.logits.argmax())
            if token in self._ends:
                return i
            self._context.decode(seq, [token])
        return n
