"""How decode steps attend: :class:`Method`, its settings checked."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ._native import ffi, lib, text
from .sampling import real_number, whole_number

_INT_MAX = 2**31 - 1
_GRANULARITIES = ("kv_head", "head")
_CRITERIA = {"auto": lib.FASA_CRITERION_AUTO, "ca": lib.FASA_CRITERION_CA, "mass": lib.FASA_CRITERION_MASS}
_K_DOM = {"f16": lib.FASA_K_DOM_F16, "int8": lib.FASA_K_DOM_INT8, "q4": lib.FASA_K_DOM_Q4}
_PLACEMENTS = {"auto": lib.FASA_KV_AUTO, "device": lib.FASA_KV_DEVICE, "split": lib.FASA_KV_SPLIT}


def supported_methods() -> tuple[str, ...]:
    """Names of the engine's methods, without ``auto``."""
    return tuple(text(lib.fasa_supported_methods()).split(", "))


# The engine borrows the name for as long as it likes.
_NAMES = {name: ffi.new("char[]", name.encode()) for name in ("auto", *supported_methods())}


def _choice(name: str, value: object, allowed: Any) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_count_or_share(name: str, value: object) -> None:
    """:raises ValueError: the setting is neither a count nor a share of all"""
    if isinstance(value, (float, np.floating)):
        if real_number(name, value, 0.0, 1.0) == 0:
            raise ValueError(f"{name} must be above 0: a count, or a share up to 1.0")
    else:
        whole_number(name, value, 1, _INT_MAX)


@dataclass(frozen=True)
class Method:
    """Which cached tokens a decode step attends to. Prefill is always dense [FASA §4].

    ``full`` attends to all. ``fasa`` ranks them by the scores of each head's dominant chunks alone, then attends to the
    best with whole keys; it needs a calibrated model. ``auto`` is ``fasa`` when the model carries a table, else
    ``full``. The others are baselines. All of them attend to all tokens while no more than ``n_fac`` are cached.

    :raises ValueError: a name that the engine does not have, or a value out of its range
    """

    name: str = "auto"
    n_tip: int | float | None = None  # dominant chunks of a head, or a share of all; None: the table's advice, else 1/4
    n_fac: int | float = 256  # tokens attended to, forced ones included; a float up to 1.0: that share of the cached
    n_sink: int = 4  # first and last tokens that are always among them
    n_recent: int = 32
    dense_layers: int = 1  # leading layers that attend to all
    dense_below: int | None = None  # cached tokens up to which all layers do; None: as many as the engine finds cheaper
    page: int = 1  # tokens chosen together
    chunks: str = "kv_head"  # dominant chunks of a KV head, or of each query head ("head")
    tokens: str = "kv_head"  # likewise for the tokens attended to
    criterion: str = "auto"  # of dominant chunks: "ca" (the paper's), "mass"; auto: the table's default
    budgets: str = "uniform"  # or "pyramid": n_fac is the mean, and falls from layer to layer
    quest_score: str = "min_max"  # quest: pages by the bounds of their keys, or "mean_std"
    observe_window: int = 32  # snapkv, rkv: the last queries, which vote
    refresh_every: int = 64  # snapkv, rkv: generated tokens between two votes
    redundancy_weight: float = 0.9  # rkv

    def __post_init__(self) -> None:
        if self.name == "r-kv":  # as its paper spells it
            object.__setattr__(self, "name", "rkv")
        _choice("method", self.name, _NAMES)
        if self.n_tip is not None:
            check_count_or_share("n_tip", self.n_tip)
        check_count_or_share("n_fac", self.n_fac)
        for name in ("n_sink", "n_recent", "dense_layers"):
            whole_number(name, getattr(self, name), 0, _INT_MAX)
        if self.dense_below is not None:
            whole_number("dense_below", self.dense_below, 0, _INT_MAX)
        whole_number("page", self.page, 1, 4096)
        _choice("chunks", self.chunks, _GRANULARITIES)
        _choice("tokens", self.tokens, _GRANULARITIES)
        _choice("criterion", self.criterion, _CRITERIA)
        _choice("budgets", self.budgets, ("uniform", "pyramid"))
        _choice("quest_score", self.quest_score, ("min_max", "mean_std"))
        whole_number("observe_window", self.observe_window, 1, 4096)
        whole_number("refresh_every", self.refresh_every, 1, _INT_MAX)
        real_number("redundancy_weight", self.redundancy_weight, 0.0, 1.0)

    def paper(self) -> Method:
        """The same method as the paper has it: nothing forced, no dense layer, sets per query head, criterion ca."""
        return replace(
            self, n_sink=0, n_recent=0, dense_layers=0, dense_below=0, chunks="head", tokens="head", criterion="ca"
        )

    def n_observed(self, n_prompt: int) -> int:
        """How many of a prompt's last tokens it has to see being processed, because the KV cache holds no queries."""
        if self.name in ("snapkv", "rkv"):
            return min(self.observe_window, n_prompt)
        return n_prompt if self.name == "h2o" else 0

    @classmethod
    def of(cls, method: str | Method, paper: bool = False, granularity: str | None = None, **settings: Any) -> Method:
        """A method from its name, or another one with settings changed; settings that are None stay as they are.

        :param paper: start from :meth:`paper`
        :param granularity: of dominant chunks and tokens alike
        """
        made = method if isinstance(method, Method) else cls(method)
        if paper:
            made = made.paper()
        if granularity is not None:
            _choice("granularity", granularity, _GRANULARITIES)
            made = replace(made, chunks=granularity, tokens=granularity)
        return replace(made, **{name: value for name, value in settings.items() if value is not None})

    def __str__(self) -> str:
        """The name, and what differs from the defaults or is asked first."""
        if self.name in ("auto", "full"):
            return self.name
        defaults = Method()
        shown = ["n_fac", *(("n_tip", "criterion") if self.name == "fasa" else ())]
        hidden = ("name", "dense_below", "n_tip", "criterion")
        shown += [
            f.name
            for f in fields(self)
            if f.name not in (*shown, *hidden) and getattr(self, f.name) != getattr(defaults, f.name)
        ]
        return f"{self.name} ({', '.join(f'{name} {getattr(self, name)}' for name in shown)})"

    # -- the engine's struct -------------------------------------------------------------------------------------------

    def write_to(self, out: Any) -> None:
        """Fill a ``fasa_method_params *``."""
        fraction = isinstance(self.n_fac, (float, np.floating))
        lib.fasa_method_params_default(out)
        out.method = _NAMES[self.name]
        share = isinstance(self.n_tip, (float, np.floating))
        out.n_tip = 0 if share else self.n_tip or 0
        out.n_tip_fraction = self.n_tip if share else 0
        out.n_fac = Method.n_fac if fraction else self.n_fac
        out.n_fac_fraction = self.n_fac if fraction else 0
        out.n_sink, out.n_recent, out.dense_layers = self.n_sink, self.n_recent, self.dense_layers
        out.dense_below = -1 if self.dense_below is None else self.dense_below
        out.page = self.page
        out.chunks_per_head, out.tokens_per_head = self.chunks == "head", self.tokens == "head"
        out.criterion = _CRITERIA[self.criterion]
        out.pyramid = self.budgets == "pyramid"
        out.quest_mean_std = self.quest_score == "mean_std"
        out.observe_window, out.refresh_every = self.observe_window, self.refresh_every
        out.redundancy_weight = self.redundancy_weight

    @classmethod
    def read_from(cls, struct: Any) -> Method:
        """The method that a ``fasa_method_params`` describes."""
        return cls(
            name=text(struct.method),
            n_tip=round(struct.n_tip_fraction, 6) if struct.n_tip_fraction > 0 else struct.n_tip or None,
            n_fac=round(struct.n_fac_fraction, 6) if struct.n_fac_fraction > 0 else struct.n_fac,
            n_sink=struct.n_sink,
            n_recent=struct.n_recent,
            dense_layers=struct.dense_layers,
            dense_below=None if struct.dense_below < 0 else struct.dense_below,
            page=struct.page,
            chunks=_GRANULARITIES[struct.chunks_per_head],
            tokens=_GRANULARITIES[struct.tokens_per_head],
            criterion=next(name for name, value in _CRITERIA.items() if value == struct.criterion),
            budgets="pyramid" if struct.pyramid else "uniform",
            quest_score="mean_std" if struct.quest_mean_std else "min_max",
            observe_window=struct.observe_window,
            refresh_every=struct.refresh_every,
            redundancy_weight=round(struct.redundancy_weight, 6),  # a float32
        )


def criterion_number(criterion: str) -> int:
    """``ca`` or ``mass`` (or ``auto``) as the engine's number.

    :raises ValueError: for any other text
    """
    _choice("criterion", criterion, _CRITERIA)
    return _CRITERIA[criterion]


def k_dom_number(k_dom: str) -> int:
    """``f16``, ``int8`` or ``q4`` as the engine's number.

    :raises ValueError: for any other text
    """
    _choice("k_dom", k_dom, _K_DOM)
    return _K_DOM[k_dom]


def kv_name(kv: int) -> str:
    """The inverse of :func:`kv_placement`."""
    return {number: name for name, number in _PLACEMENTS.items()}[kv]


def kv_placement(kv: str) -> int:
    """``auto``, ``device`` or ``split`` as the engine's number.

    :raises ValueError: for any other text
    """
    _choice("kv", kv, _PLACEMENTS)
    return _PLACEMENTS[kv]
