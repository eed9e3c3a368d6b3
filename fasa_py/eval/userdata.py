r"""Data sets of the user: JSON lines in the formats of LongBench, MATH500 and AIME.

LongBench (arXiv 2308.14508)
    ``input``, ``context``, ``answers`` (list), ``dataset``, ``all_classes`` (list or null). Templates and lengths of
    answers come from LongBench's own ``dataset2prompt.json`` and ``dataset2maxlen.json`` when their folder is given.
MATH500, AIME
    ``problem`` (or ``Problem``, ``question``) and ``answer`` (or ``Answer``); the last ``\boxed{}`` is compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import metrics
from .cases import Case
from .subject import Subject

_PLAIN_PROMPT = "Answer the question by the text below. Give only the answer.\n\n{context}\n\n{input}\nAnswer:"
_MATH_PROMPT = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_MATH_TOKENS = 8192
_LONGBENCH_TOKENS = 128
# LongBench's English and code data sets whose metric is not F1.
_METRICS: dict[str, tuple[str, metrics.Metric]] = {
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), ("rouge_l", metrics.rouge_l)),
    **dict.fromkeys(("trec", "lsht"), ("classification", metrics.classification)),
    "passage_count": ("count", metrics.count),
    "passage_retrieval_en": ("retrieval", metrics.retrieval),
    **dict.fromkeys(("lcc", "repobench-p"), ("code_similarity", metrics.code_similarity)),
}
_FIRST_LINE_ONLY = ("trec", "triviaqa", "samsum", "lsht")  # the answer ends with its line
_NO_CHAT = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")  # to be continued, not to be answered


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line that is not empty."""
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}, line {i}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON: {error}") from None
        if not isinstance(item, dict):
            raise ValueError(f"{place}: expected an object, found {type(item).__name__}")
        yield place, item


def _text(item: dict[str, Any], place: str, *names: str) -> str:
    """The first of the named fields that is there; numbers become text."""
    for name in names:
        value = item.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    raise ValueError(f"{place}: no text in the field {' or '.join(map(repr, names))}; it has {', '.join(item)}")


def _texts(item: dict[str, Any], place: str, name: str) -> list[str]:
    value = item.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{place}: the field {name!r} must be a list of texts")
    return value


def _config(folder: Path | None, name: str) -> dict[str, Any]:
    return {} if folder is None else json.loads((folder / name).read_text(encoding="utf-8"))


def _cut_middle(ids: list[int], room: int) -> tuple[list[int], int]:
    """At most ``room`` ids, first and last halves kept, and how many were left out."""
    if len(ids) <= room:
        return ids, 0
    head = room // 2
    return ids[:head] + ids[len(ids) - (room - head) :], len(ids) - room


def _score(metric: metrics.Metric, references: Sequence[str], first_line: bool, text: str) -> float:
    return metric(text.lstrip("\n").split("\n")[0] if first_line else text, references)


class UserData:
    """A file of questions.

    :param longbench_config: folder with LongBench's ``dataset2prompt.json`` and ``dataset2maxlen.json``
    :raises ValueError: a line that is in none of the formats; says which line and what is missing
    """

    def __init__(self, path: str | Path, longbench_config: str | Path | None = None) -> None:
        self.path = Path(path)
        self.items = list(_lines(self.path))
        if not self.items:
            raise ValueError(f"{self.path} has no questions")
        folder = None if longbench_config is None else Path(longbench_config)
        self._prompts, self._max_tokens = _config(folder, "dataset2prompt.json"), _config(folder, "dataset2maxlen.json")

    def __len__(self) -> int:
        return len(self.items)

    def case(self, index: int, subject: Subject, n_ctx: int, max_tokens: int | None = None) -> Case:
        """One question; a prompt that exceeds the context loses its middle, and the case says how much.

        :raises ValueError: the context has no room for a prompt besides the answer
        """
        place, item = self.items[index]
        make: Callable[..., Case] = self._longbench if "context" in item and "answers" in item else self._math
        return make(index, place, item, subject, n_ctx, max_tokens)

    def _prompt(self, subject: Subject, text: str, chat: bool, room: int, place: str) -> tuple[list[int], int]:
        if room < 64:
            raise ValueError(f"{place}: the context leaves {room} tokens for the prompt; make it longer")
        return _cut_middle(subject.ask(text) if chat else subject.begin(text), room)

    def _longbench(
        self, index: int, place: str, item: dict[str, Any], subject: Subject, n_ctx: int, max_tokens: int | None
    ) -> Case:
        dataset = _text({**item, "dataset": item.get("dataset", self.path.stem)}, place, "dataset").removesuffix("_e")
        name, metric = _METRICS.get(dataset, ("f1", metrics.f1))
        if name == "classification":
            metric = partial(metrics.classification, classes=_texts(item, place, "all_classes"))
        n_new = max_tokens or int(self._max_tokens.get(dataset, _LONGBENCH_TOKENS))
        fields = {"context": _text(item, place, "context"), "input": _text(item, place, "input")}
        text = str(self._prompts.get(dataset, _PLAIN_PROMPT)).format(**fields)
        prompt, n_cut = self._prompt(subject, text, dataset not in _NO_CHAT, n_ctx - n_new, place)
        score = partial(_score, metric, _texts(item, place, "answers"), dataset in _FIRST_LINE_ONLY)
        return Case(dataset, 0, str(index), prompt, [], score, name, n_new, n_cut)

    def _math(
        self, index: int, place: str, item: dict[str, Any], subject: Subject, n_ctx: int, max_tokens: int | None
    ) -> Case:
        problem = _text(item, place, "problem", "Problem", "question")
        answer = _text(item, place, "answer", "Answer")
        n_new = max_tokens or min(_MATH_TOKENS, n_ctx // 2)
        text = _MATH_PROMPT.format(problem=problem)
        prompt, n_cut = self._prompt(subject, text, True, n_ctx - n_new, place)
        score = partial(_score, metrics.boxed_answer, [answer], False)
        return Case(self.path.stem, 0, str(index), prompt, [], score, "boxed_answer", n_new, n_cut)
