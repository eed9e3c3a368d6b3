"""The methods of an evaluation, from short texts: ``fasa-ca``, ``quest``, ``fasa:n_sink=0,n_recent=0``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from ..method import Method

DENSE = "dense"
# What the short names mean; any other name is one of the engine's.
_PRESETS = {
    DENSE: Method("full"),
    "fasa-mass": Method("fasa", criterion="mass"),
    "fasa-ca": Method("fasa", criterion="ca"),
    "fasa-paper": Method("fasa").paper(),
}
_HAS_N_TIP = ("fasa", "sparq")
_HAS_NO_BUDGET = ("full", "auto")


@dataclass(frozen=True)
class Candidate:
    """A method under evaluation."""

    spec: str  # as it was asked for
    method: Method

    @property
    def label(self) -> str:
        """The name with its budget: what results are stored under."""
        m = self.method
        if m.name in _HAS_NO_BUDGET:
            return self.spec
        tip = f" n_tip={m.n_tip}" if m.name in _HAS_N_TIP and m.n_tip is not None else ""
        return f"{self.spec}{tip} n_fac={m.n_fac}"

    @property
    def is_dense(self) -> bool:
        return self.method.name == "full"


def _value(name: str, text: str) -> int | float | str:
    """A setting's value: a whole number, a fraction or a word."""
    if name not in {f.name for f in fields(Method)} - {"name"}:
        raise ValueError(f"a method has no setting {name!r}; there are {', '.join(f.name for f in fields(Method)[1:])}")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_method(spec: str) -> Candidate:
    """A method from ``name`` or ``name:setting=value,setting=value``.

    Names: ``dense``, ``fasa-mass``, ``fasa-ca``, ``fasa-paper`` (nothing forced, no dense layer, sets per query head),
    and those of the engine (:func:`fasa_py.method.supported_methods`). Settings are those of
    :class:`fasa_py.method.Method`.

    :raises ValueError: an unknown name or setting, or a value out of its range
    """
    name, _, settings = spec.partition(":")
    method = _PRESETS[name] if name in _PRESETS else Method(name)
    changes = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} in the method {spec!r} must have the form setting=value")
        changes[key] = _value(key, value)
    return Candidate(spec, replace(method, **changes))  # type: ignore[arg-type]


def expand(
    specs: Iterable[str],
    n_tip: Sequence[int | float] = (),
    n_fac: Sequence[int | float] = (),
    default_n_tip: int | float | None = None,
) -> list[Candidate]:
    """Every method with every ``n_tip`` and ``n_fac`` that applies to it, dense first: it is what others compare with.

    A setting written in a spec itself stays as written; ``default_n_tip`` is used where none is given.
    """
    made: dict[str, Candidate] = {}
    tips: Sequence[int | float | None] = list(n_tip) or [default_n_tip]
    for spec in specs:
        base = parse_method(spec)
        written = {setting.partition("=")[0] for setting in spec.partition(":")[2].split(",")}
        for tip in tips if base.method.name in _HAS_N_TIP and "n_tip" not in written else [None]:
            for fac in n_fac if base.method.name not in _HAS_NO_BUDGET and "n_fac" not in written and n_fac else [None]:
                changes = {name: value for name, value in (("n_tip", tip), ("n_fac", fac)) if value is not None}
                candidate = Candidate(spec, replace(base.method, **changes))  # type: ignore[arg-type]
                made.setdefault(candidate.label, candidate)
    return sorted(made.values(), key=lambda candidate: not candidate.is_dense)
