"""Chat templates: the Jinja program in a model's file that writes a conversation as the text the model was trained on.

Templates come from files that nobody has checked, so they run in Jinja's sandbox, which also forbids changing what they
are given. The environment is the one that Hugging Face transformers and llama.cpp give them.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .errors import FasaError, FormatError, UnsupportedError
from .sandbox import SandboxedTemplates, budget
from .tokenizer import Tokenizer

Message = Mapping[str, Any]

_KEY = "tokenizer.chat_template"


class ChatTemplateError(FasaError, ValueError):
    """A chat template is malformed, or refused or failed to write a conversation. The text names the line."""


class _Refusal(Exception):
    """A template called ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: marks the model's part for training; the text is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(text: object) -> NoReturn:
    raise _Refusal(str(text))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, where Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> SandboxedTemplates:
    environment = SandboxedTemplates(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _line_of(error: BaseException) -> int | None:
    """Line of the template where an error arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


def _failure(what: str, error: Exception, line: int | None) -> ChatTemplateError:
    reason = str(error) or type(error).__name__
    return ChatTemplateError(f"the chat template {what}: {reason}" + (f" (template line {line})" if line else ""))


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source
        The Jinja program.
    bos_token, eos_token
        Text of these tokens, "" when the vocabulary has none.

    Raises
    ------
    ChatTemplateError
        The program is malformed; the text names the line.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        try:
            with budget():  # constants are computed now
                self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise _failure("is malformed", error, error.lineno) from None
        except Exception as error:  # Python's own compiler has limits that a generated program can pass
            raise _failure("cannot be compiled", error, None) from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
        """The template of a file.

        Parameters
        ----------
        metadata
            Of the GGUF file.
        tokenizer
            Of the same file.
        name
            One of the file's named templates, or (a text with Jinja tags) a template to use instead of the file's;
            None: the file's default.

        Raises
        ------
        UnsupportedError
            The file has no such template. There is no default to fall back on: a model answers badly, and silently
            so, to a format it was not trained on.
        FormatError
            The template is not a text.
        ChatTemplateError
            The template is malformed.
        """
        if name is not None and ("{{" in name or "{%" in name):
            source: Any = name
        else:
            source = metadata.get(_KEY if name is None else f"{_KEY}.{name}")
            if source is None:
                raise UnsupportedError(_no_template(metadata, name))
            if not isinstance(source, str):
                raise FormatError(f"{_KEY}{f'.{name}' if name else ''} is not a UTF-8 text")
        bos, eos = (
            "" if token is None else tokenizer.token_text(token) for token in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos, eos)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as text.

        A system message goes before the next user message, with a newline between, in templates that refuse or ignore
        it. Content given as a list of text parts is joined by newlines.

        Parameters
        ----------
        messages
            Each with a ``role`` and, mostly, a ``content``.
        add_generation_prompt
            End with the opening of the assistant's turn.
        now
            Date and time for templates that write it; None: the present.
        variables
            More variables of the template (``tools``, ``enable_thinking`` …); one that is None counts as not given.

        Raises
        ------
        ChatTemplateError
            The template refuses the conversation or fails on it.
        ValueError
            A message is not of the form above.
        """
        checked = [_plain_message(i, message) for i, message in enumerate(messages)]
        if any(message["role"] == "system" for message in checked) and not self._takes_system:
            checked = _system_into_user(checked)
        return self._run(checked, add_generation_prompt, now or datetime.now(), variables)

    @cached_property
    def _takes_system(self) -> bool:
        """Whether a system message shows in what the template writes."""
        marker = "the-system-message"
        probe = [{"role": "system", "content": marker}, {"role": "user", "content": "the-user-message"}]
        try:
            return marker in self._run(probe, True, datetime.now(), {})
        except ChatTemplateError:
            return False

    def _run(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, now: datetime, variables: Mapping[str, Any]
    ) -> str:
        # Names that published templates expect besides the messages.
        known: dict[str, Any] = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": True,
            "date_string": now.strftime("%d %b %Y"),
            "datetime": now.strftime("%b %d %Y"),
            "functions": "",
            "strftime_now": now.strftime,
        }
        given = {name: value for name, value in variables.items() if value is not None}
        try:
            with budget():
                return self._template.render({**known, **given, "messages": messages})
        except _Refusal as error:
            raise _failure("refuses the conversation", error, _line_of(error)) from None
        except Exception as error:  # whatever a program from a file may do wrong
            raise _failure("failed", error, _line_of(error)) from error


def _no_template(metadata: Mapping[str, Any], name: str | None) -> str:
    names = sorted(key.removeprefix(_KEY + ".") for key in metadata if key.startswith(_KEY + "."))
    has = f"it has templates named {', '.join(names)}" if names else "it has none by name either"
    if name is None:
        return f"the file has no {_KEY}; {has}: name one, or give a template of your own"
    return f"the file has no chat template named {name!r}; " + (has if names else "it has no named ones")


def _plain_message(i: int, message: Message) -> dict[str, Any]:
    """A copy with its content as one text."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{i}] must be a mapping with a text as 'role'")
    plain = dict(message)
    content = plain.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"messages[{i}]: a part of 'content' is not text, which is all that models here take")
        plain["content"] = "\n".join(part for part in parts if part is not None)
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"messages[{i}]: 'content' must be text or a list of text parts")
    return plain


def _system_into_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages put before the next user message; into one of their own where none follows at once."""
    result: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message.get("content") or "")
            continue
        if waiting and message["role"] == "user":
            message = {**message, "content": "\n".join((*waiting, message.get("content") or ""))}
        elif waiting:
            result.append({"role": "user", "content": "\n".join(waiting)})
        waiting = []
        result.append(message)
    if waiting:
        result.append({"role": "user", "content": "\n".join(waiting)})
    return result


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    now: datetime | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation. Parameters and errors: :meth:`ChatTemplate.render`.

    BOS is put first where the model expects it and the template did not write it. Special tokens are read wherever
    their text occurs, in the content of messages too, as llama.cpp does: a message from someone who is not trusted can
    open a turn of its own. Take such text out of the content before where that matters.
    """
    text = template.render(messages, add_generation_prompt, now=now, **variables)
    ids = tokenizer.encode(text, special=True)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids
