"""What a model reads and writes while it is calibrated: samples, each a conversation or a text to continue."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .errors import ContextFullError, FasaError, UnsupportedError
from .llama import Llama

_QUESTIONS = "\n\n\nQuestions\n\n"  # between the default text and its questions, one a line
_INTRODUCTION = "Read the text below and answer the question at the end."
_LAST_REQUEST = "Continue the text."
_ANSWER = "<<the answer>>"  # stands for an answer while a template writes what follows it
_LONGEST = 12288  # tokens of a sample unless asked otherwise: more costs time and changes little


@dataclass(frozen=True)
class Sample:
    """Token ids that the model is given one after the other; it writes something after each."""

    turns: list[list[int]]

    @property
    def n_given(self) -> int:
        """Tokens given in all turns."""
        return sum(map(len, self.turns))


def default_text() -> tuple[str, list[str]]:
    """The shipped text and the questions about it."""
    text = resources.files("fasa_py").joinpath("data/calibration.txt").read_text(encoding="utf-8")
    document, questions = text.split(_QUESTIONS)
    return document, questions.split("\n")[:-1]


def sample_limit(llm: Llama, n_generated: int) -> int:
    """Tokens that a sample may give the model, so that what it writes fits too."""
    return min(llm.info.n_ctx_train, _LONGEST) - n_generated


def default_samples(llm: Llama, n_samples: int, n_generated: int) -> list[Sample]:
    """The shipped text: a conversation about it where the model has a chat template, else the text to go on with.

    Several samples share out the questions.
    """
    document, questions = default_text()
    limit = sample_limit(llm, n_generated)
    template = None
    try:
        template = llm.chat_template
        return [_conversation(llm, document, questions[i::n_samples], limit) for i in range(n_samples)]
    except FasaError as error:
        if template is not None:
            warnings.warn(f"the model's chat template is not used for calibration: {error}", stacklevel=3)
    plain = [f"{document}\n\nQuestion: {question}\nAnswer:" for question in questions[:n_samples]]
    return [Sample([_last(llm.tokenize(prompt), limit)]) for prompt in plain]


def _conversation(llm: Llama, document: str, questions: Sequence[str], limit: int) -> Sample:
    """Questions about the document one after the other, then the wish to see it continued."""
    asked = [*questions, _LAST_REQUEST]
    later = [_after_answer(llm, question) for question in asked[1:]]
    room = limit - sum(map(len, later))

    def first(text: str) -> list[int]:
        content = f"{_INTRODUCTION}\n\n{text}\n\n{asked[0]}"
        return llm._chat_tokens([{"role": "user", "content": content}])

    ids = first(document)
    if len(ids) > room:  # a short context: the document is cut
        kept = llm.tokenize(document, add_bos=False)[: max(0, 2 * room - len(ids))]
        ids = first(llm.detokenize(kept))
    return Sample([ids, *later])


def _after_answer(llm: Llama, question: str) -> list[int]:
    """What the template writes between an answer and the next one.

    :raises UnsupportedError: it does not write answers as they are
    """
    messages = [
        {"role": "user", "content": "-"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": question},
    ]
    parts = llm.chat_template.render(messages).split(_ANSWER)
    if len(parts) != 2:
        raise UnsupportedError("it does not write answers as they are")
    return llm.tokenizer.encode(parts[1], special=True)


def _last(ids: list[int], limit: int) -> list[int]:
    """The last tokens that fit, behind the first one, which may be BOS."""
    return ids if len(ids) <= limit else ids[:1] + ids[len(ids) - max(0, limit - 1) :]


def text_samples(llm: Llama, text: str, n_samples: int, n_generated: int) -> list[Sample]:
    """Equal parts of a text, each to be continued, cut to what fits.

    :raises ValueError: the text has fewer tokens than there are samples
    """
    ids, limit = llm.tokenize(text), sample_limit(llm, n_generated)
    size = len(ids) // n_samples
    if size == 0:
        raise ValueError(f"the text has {len(ids)} tokens, too few for {n_samples} samples")
    return [Sample([ids[i * size : (i + 1) * size][:limit]]) for i in range(n_samples)]


def prompt_samples(llm: Llama, prompts: Sequence[Any], n_generated: int) -> list[Sample]:
    """One sample a prompt: a text, token ids, or chat messages.

    :raises ValueError: there is none, or one is empty
    :raises ContextFullError: one is longer than the trained context, less what will be generated
    """
    limit = llm.info.n_ctx_train - n_generated
    if isinstance(prompts, (str, bytes, Mapping)) or not prompts:
        raise ValueError("prompts must be a list of texts, of token ids or of chat messages, at least one")
    samples = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            ids = llm.tokenize(prompt, special=True)
        elif isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            ids = llm._chat_tokens(prompt)
        else:
            ids = llm._checked_tokens(prompt)
        if not ids:
            raise ValueError(f"prompts[{i}] is empty")
        if len(ids) > limit:
            raise ContextFullError(
                f"prompts[{i}] has {len(ids)} tokens, and {n_generated} are to be generated; the model was trained for "
                f"{llm.info.n_ctx_train}: shorten the prompt, or take fewer steps"
            )
        samples.append(Sample([ids]))
    return samples
