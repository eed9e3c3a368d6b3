"""The methods of an evaluation, from short texts: ``fasa-ca``, ``quest``, ``fasa:n_sink=0,n_recent=0``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from ..method import Method, k_dom_number

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
    k_dom: str = "f16"  # how the dominant keys are stored that it ranks by

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

    @property
    def is_coded(self) -> bool:
        """Whether its dominant keys have 8 or 4 bits, so that it needs a cache of its own."""
        return self.k_dom != "f16"

    @property
    def exact(self) -> Candidate:
        """The same with exact dominant keys."""
        name, _, settings = self.spec.partition(":")
        others = ",".join(s for s in settings.split(",") if s and not s.startswith("k_dom="))
        return Candidate(f"{name}:{others}" if others else name, self.method)


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
    :class:`fasa_py.method.Method`, and ``k_dom`` as :class:`fasa_py.Llama` has it, for fasa. ``dense_below`` is 0
    unless given: an evaluation is of the method, at lengths too where full attention would be as fast.

    :raises ValueError: an unknown name or setting, or a value out of its range
    """
    name, _, settings = spec.partition(":")
    method = _PRESETS[name] if name in _PRESETS else Method(name)
    changes = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} in the method {spec!r} must have the form setting=value")
        changes[key] = value if key == "k_dom" else _value(key, value)
    k_dom = str(changes.pop("k_dom", "f16"))
    k_dom_number(k_dom)
    if k_dom != "f16" and method.name != "fasa":
        raise ValueError(f"k_dom={k_dom} is for the method fasa, not {spec!r}")
    if method.name not in _HAS_NO_BUDGET:
        changes.setdefault("dense_below", 0)
    return Candidate(spec, replace(method, **changes), k_dom)  # type: ignore[arg-type]


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
                candidate = replace(base, method=replace(base.method, **changes))  # type: ignore[arg-type]
                made.setdefault(candidate.label, candidate)
    return sorted(made.values(), key=lambda candidate: not candidate.is_dense)
