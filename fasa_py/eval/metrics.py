"""How an answer is scored: each metric is a function of (prediction, references) to 0..1.

Token F1, ROUGE-L, classification, retrieval, counting and code similarity are those of LongBench (arXiv 2308.14508);
the comparison of boxed answers is that of MATH (arXiv 2103.03874) with numbers compared by value.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

Metric = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normal(text: str) -> str:
    """Lower case, without punctuation, articles and surplus space (SQuAD's rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _best(score: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    return max((score(prediction, reference) for reference in references), default=0.0)


def _harmonic(n_common: int, n_prediction: int, n_reference: int) -> float:
    if n_common == 0:
        return 0.0
    precision, recall = n_common / n_prediction, n_common / n_reference
    return 2 * precision * recall / (precision + recall)


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the normalised words, each as often as it occurs."""

    def score(p: str, r: str) -> float:
        words, expected = _normal(p).split(), _normal(r).split()
        return _harmonic(sum((Counter(words) & Counter(expected)).values()), len(words), len(expected))

    return _best(score, prediction, references)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L's F1 over whitespace-separated lower-case words, the text taken as one sentence."""

    def score(p: str, r: str) -> float:
        words, expected = p.lower().split(), r.lower().split()
        return _harmonic(_common_subsequence(words, expected), len(words), len(expected))

    return _best(score, prediction, references)


def code_similarity(prediction: str, references: Sequence[str]) -> float:
    """Edit similarity of the first line that is code and no comment (Ratcliff/Obershelp, 0 to 1)."""
    lines = (line for line in prediction.lstrip("\n").split("\n"))
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return _best(lambda p, r: difflib.SequenceMatcher(None, p, r, autojunk=False).ratio(), code, references)


def classification(prediction: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """One over the number of classes that the prediction names, when the right one is among them.

    A class whose name is part of the right one's does not count.
    """

    def score(p: str, r: str) -> float:
        named = [c for c in classes if c in p and (c == r or c not in r)]
        return 1 / len(named) if r in named else 0.0

    return _best(score, prediction, references)


def _share_of_numbers(prediction: str, expected: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(expected) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, references: Sequence[str]) -> float:
    """Of the numbers in the prediction, the share that equals the reference's ("Paragraph 7")."""
    return _best(lambda p, r: _share_of_numbers(p, "".join(re.findall(r"\d+", r)[:1])), prediction, references)


def count(prediction: str, references: Sequence[str]) -> float:
    """Of the numbers in the prediction, the share that equals the reference."""
    return _best(lambda p, r: _share_of_numbers(p, r.strip()), prediction, references)


def contains_all(prediction: str, references: Sequence[str]) -> float:
    """The share of the references that stand in the prediction (RULER's recall)."""
    found = sum(reference.lower() in prediction.lower() for reference in references)
    return found / len(references) if references else 0.0


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, braces balanced; None when there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None


def _math_form(text: str) -> str:
    """A mathematical answer without what does not change its value: spacing, sizes, units, styles."""
    text = re.sub(r"\\(left|right|!|,|;|:|displaystyle|\s)", "", text.strip().strip("$").rstrip("."))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^\{?\\circ\}?|\\degree|\\%|%|\\\$|\$", "", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"\s+", "", text)


def _number(text: str) -> Fraction | None:
    match = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    try:
        if match:
            return Fraction(int(match[2]), int(match[3])) * (-1 if match[1] else 1)
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def math_equal(a: str, b: str) -> bool:
    """Whether two answers are the same after normalisation, or the same number."""
    a, b = _math_form(a), _math_form(b)
    x, y = _number(a), _number(b)
    return a == b or (x is not None and x == y)


def boxed_answer(prediction: str, references: Sequence[str]) -> float:
    r"""1 when the last ``\boxed{}`` (or, without one, the last number) equals a reference."""
    answer = boxed(prediction)
    if answer is None:
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", prediction)
        answer = numbers[-1] if numbers else ""
    return float(any(math_equal(answer, reference) for reference in references))
