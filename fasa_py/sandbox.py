"""Where chat templates run: Jinja's sandbox, with limits on what a few characters of template could make of memory.

Two limits, neither of which looks at a clock. An operation that makes a text out of others (``+``, ``~``, ``*``, ``%``,
``replace``, ``center`` …) is refused before it begins when the result could be too large. And a rendering has a budget
of steps and characters, which loops, macros, calls and the results of operations draw on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LARGEST = 10_000_000  # characters or elements that one operation may make
_BUDGET = 50_000_000  # of one rendering: a character made costs 1, a step _STEP
_STEP = 250
_ELEMENT = 20  # of a list, in characters
_LONGEST_NUMBER = 1000  # digits
_WIDTH = re.compile(r"\d{6,}|%[^%a-zA-Z]*\*|\{[^{}]*\{")  # of a format: immense, or taken from an argument

# Methods and filters whose result may be much larger than what they are given.
_GROWING = {
    "center", "ljust", "rjust", "zfill", "expandtabs", "join", "replace", "indent", "wordwrap", "tojson", "urlize",
    "batch", "slice", "truncate", "round", "xmlattr",
}  # fmt: skip
_FORMATTING = {"format", "format_map"}
_REFUSED = {"translate", "to_bytes"}

_left: ContextVar[list[int]] = ContextVar("characters and steps left")


@contextmanager
def budget() -> Iterator[None]:
    """What is compiled or rendered inside shares a fresh budget."""
    token = _left.set([_BUDGET])
    try:
        yield
    finally:
        _left.reset(token)


def _spend(n: int) -> None:
    left = _left.get()
    left[0] -= n
    if left[0] < 0:
        raise SecurityError("it takes too many steps or makes too much text")


def _weight(value: Any) -> int:
    """Characters and elements in a value, at any depth; refuses one that would be too large as a text.

    Lists may hold each other many times over, so that little memory is an immense text: what is met again counts again.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
            total += _ELEMENT * len(item)
        elif isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())
            total += _ELEMENT * len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 3
        if total > LARGEST:
            raise SecurityError("a value is too large")
    return total


def _limit(size: int, operation: str) -> None:
    if size > LARGEST:
        raise SecurityError(f"the result of {operation} is too large")


def _check_format(text: str | bytes, arguments: Any) -> None:
    shown = text if isinstance(text, str) else text.decode("latin-1")
    if _WIDTH.search(shown):
        raise SecurityError("the result of a format is too large")
    widest = max((int(digits) for digits in re.findall(r"\d+", shown)), default=0)
    places = shown.count("%") + shown.count("{")
    _limit(len(shown) + places * (widest + _weight(arguments)), "a format")


def _check_call(name: str, subject: Any, arguments: list[Any]) -> None:
    """Refuse a method of a value, or a filter of it, that would make too much."""
    if name in _REFUSED:
        raise SecurityError(f"{name} is not for templates")
    if name in _FORMATTING and isinstance(subject, (str, bytes)):
        _check_format(subject, arguments)
    elif name in _GROWING:
        if name == "replace":  # the text that goes makes nothing
            arguments = arguments[1:]
        factor = max((abs(a) if isinstance(a, int) else _weight(a) for a in arguments), default=1)
        if name in ("center", "ljust", "rjust", "zfill", "truncate", "batch", "slice", "round"):
            _limit(_weight(subject) + factor, name)
        else:
            _limit(_weight(subject) * max(factor, 1), name)
    else:
        for argument in arguments:
            if isinstance(argument, int):
                _limit(abs(argument), name)


def _spend_result(result: Any) -> Any:
    _spend(_STEP + (len(result) if isinstance(result, (str, bytes, list, tuple)) else 0))
    return result


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter within the limits. Jinja may put its own objects first: the value is what comes after them."""

    @wraps(function)  # with the attribute that tells Jinja what to put first
    def filtered(*arguments: Any, **named: Any) -> Any:
        n_own = 1 if hasattr(function, "jinja_pass_arg") else 0
        own, (value, *rest) = arguments[:n_own], arguments[n_own:]
        if isinstance(value, Iterator):
            value = list(value)
        if name in ("string", "pprint", "list", "escape", "e", "forceescape", "lower", "upper", "capitalize", "title"):
            _weight(value)  # those that write any value as a text
        _check_call(name, value, [*rest, *named.values()])
        return _spend_result(function(*own, value, *rest, **named))

    return filtered


def _join(parts: Iterable[Any]) -> str:
    """``a ~ b``"""
    parts = list(parts)
    _weight(parts)
    return "".join(map(str, parts))


@pass_context  # so that the compiler does not take it for a constant
def _step(_context: Any, value: Any) -> Any:
    return value


class SandboxedTemplates(ImmutableSandboxedEnvironment):
    """The environment. Compile and render inside :func:`budget`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._write, **options)
        del self.globals["lipsum"]
        for name, function in {**self.filters, "~": _join, "step": _step}.items():
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter within the limits, under this name."""
        self.filters[name] = _guarded(name, function)

    @staticmethod
    def _write(value: Any) -> Any:
        """What ``{{ }}`` puts out, before it becomes a text."""
        _spend(_weight(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The program, with ``~`` as a filter and a counted step in each round of a loop and call of a macro."""
        tree = super()._parse(source, name, filename)
        blocks: Iterator[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for block in list(blocks):
            step = nodes.Filter(nodes.Const(None), "step", [], [], None, None, lineno=block.lineno)
            block.body.insert(0, nodes.ExprStmt(step, lineno=block.lineno).set_environment(self))
        return _Concatenations().visit(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if not all(isinstance(value, (int, float)) for value in (left, right)) or abs(right) > 64:
                raise SecurityError("the result of ** is too large")
            _limit(max(left.bit_length(), 1) * int(abs(right)) if isinstance(left, int) else 0, operator)
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_format(left, right)
        elif operator == "*":
            sized = [value for value in (left, right) if isinstance(value, (str, bytes, list, tuple))]
            counts = [value for value in (left, right) if isinstance(value, int)]
            if sized and counts:
                _limit(len(sized[0]) * counts[0], operator)
        elif operator == "+" and isinstance(left, (str, bytes, list, tuple)):
            _limit(len(left) + (len(right) if isinstance(right, (str, bytes, list, tuple)) else 0), operator)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > 4 * _LONGEST_NUMBER:
            raise SecurityError(f"the result of {operator} is too large")
        return _spend_result(result)

    def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        bound = getattr(function, "__wrapped__", function)  # Jinja wraps str.format
        subject = getattr(bound, "__self__", None)
        if isinstance(subject, (str, bytes, int)):
            # What an iterator yields can be looked at only once.
            arguments = tuple(list(a) if isinstance(a, Iterator) else a for a in arguments)
            _check_call(getattr(bound, "__name__", ""), subject, [*arguments, *named.values()])
        return _spend_result(super().call(context, function, *arguments, **named))


class _Concatenations(NodeTransformer):
    """``a ~ b`` becomes ``[a, b] | ~``, because Jinja lets nobody intercept the operator."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        parts = nodes.List([self.visit(part) for part in node.nodes], lineno=node.lineno)
        made: nodes.Node = nodes.Filter(parts, "~", [], [], None, None, lineno=node.lineno)
        return made if node.environment is None else made.set_environment(node.environment)
