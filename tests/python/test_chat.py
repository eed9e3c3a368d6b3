"""Chat templates: what they are given, how they fail, and the tokens that come of it."""

from __future__ import annotations

import tracemalloc
from datetime import datetime
from typing import Any

import pytest
from vocabularies import CONTROL, Source, byte_level

from fasa_py.chat import ChatTemplate, ChatTemplateError, encode_chat
from fasa_py.errors import FasaError, FormatError, UnsupportedError
from fasa_py.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER_ONLY = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}: {{ m.content }}]{% endif %}{% endfor %}"
NESTED = "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
HELLO = [{"role": "user", "content": "Hello"}]
SPECIAL = {"<s>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL}


def render(source: str, messages: Any = HELLO, **variables: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages, **variables)


def source(**more: Any) -> Source:
    return byte_level(special=SPECIAL, bos_token_id=256, eos_token_id=258, **more)


def test_messages_and_the_generation_prompt() -> None:
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"
    assert render(CHATML, []) == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ enable_thinking }} {{ functions }}.", "True ."),
        ("{{ date_string }}; {{ datetime }}; {{ strftime_now('%Y-%m-%d') }}", "05 Mar 2025; Mar 05 2025; 2025-03-05"),
        ("{% if tools is defined %}tools{% else %}none{% endif %}", "none"),
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("a{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}c", "abc"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ [0] * 3 }} {{ 3 * 4 }} {{ '-' * 3 }} {{ 2 ** 10 }}", "[0, 0, 0] 12 --- 1024"),
        ("{{ messages[0].content[:2] }}", "He"),
    ],
)
def test_what_templates_may_use(program: str, text: str) -> None:
    assert render(program, now=datetime(2025, 3, 5)) == text


def test_variables_reach_the_template_and_none_is_not_given() -> None:
    program = "{{ enable_thinking }} {% if tools is defined %}{{ tools | length }}{% endif %}"
    assert render(program, enable_thinking=False, tools=[1, 2]) == "False 2"
    assert render(program, tools=None) == "True "


def test_the_present_is_the_default_date() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}


@pytest.mark.parametrize(
    "program",
    [USER_ONLY, USER_ONLY.replace("{% if", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% if")],
)
def test_a_system_message_that_a_template_does_not_take_goes_to_the_user(program: str) -> None:
    system, assistant = {"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}
    assert render(program, [system, *HELLO]) == "[user: S\nHello]"
    assert render(program, [system, system, *HELLO]) == "[user: S\nS\nHello]"
    assert render(program, [*HELLO, assistant, system, *HELLO]) == "[user: Hello][assistant: A][user: S\nHello]"
    assert render(program, [system, assistant]) == "[user: S][assistant: A]"
    assert render(program, [*HELLO, system]) == "[user: Hello][user: S]"
    assert render(program, HELLO) == "[user: Hello]"


def test_content_in_parts_becomes_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert render("{{ messages[0].content }}", messages) == "a\nb"
    assert messages == [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"content": "x"}], r"messages\[0\].*'role'"),
        ([*HELLO, "x"], r"messages\[1\]"),
        ([{"role": "user", "content": 3}], "'content' must be text"),
        ([{"role": "user", "content": b"x"}], "'content' must be text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "is not text"),
    ],
)
def test_a_message_of_another_form_is_refused(messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render(CHATML, messages)


def test_an_answer_without_content_is_passed_on() -> None:
    program = "{{ messages[0].content is none }} {{ messages[1].content is defined }}"
    assert render(program, [{"role": "assistant", "content": None}, {"role": "assistant"}]) == "True False"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("a\n{% if %}", r"malformed.*line 2"),
        ("{{ 'x }}", r"malformed.*line 1"),
        ("\n\n{% nonsense %}", r"malformed.*nonsense.*line 3"),
        ("{{ x | no_such_filter }}", r"malformed.*no_such_filter.*line 1"),
        ("{% generation %}", r"malformed.*line 1"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "cannot be compiled"),
    ],
)
def test_a_malformed_template_is_refused_with_its_line(program: str, said: str) -> None:
    with pytest.raises(ChatTemplateError, match=said) as caught:
        ChatTemplate(program)
    assert isinstance(caught.value, FasaError)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("\n{{ raise_exception('roles must alternate') }}", r"refuses .*: roles must alternate \(template line 2\)"),
        ("\n\n{{ 1 / 0 }}", r"failed: division by zero \(template line 3\)"),
        ("{{ nothing.at.all }}", r"failed: 'nothing' is undefined \(template line 1\)"),
        ("{{ messages[0].content + 1 }}", "failed: can only concatenate str"),
        ("{% for i in range(1000000000) %}{% endfor %}", "failed: Range too big"),
        ("{{ 'a' * 10000000000 }}", "failed: the result of . is too large"),
        ("{{ 10000000000 * [0] }}", "failed: the result of . is too large"),
        ("{{ 10 ** 10000000000 }}", "failed: the result of .. is too large"),
        ("{{ messages.append(1) }}", "failed: .*unsafe"),
        ("{{ messages[0].update(a=1) }}", "failed: .*unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "failed: .*unsafe"),
        ("{{ strftime_now.__self__.__class__.mro() }}", "failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: maximum recursion"),
        ("{% include 'x' %}", "failed"),
    ],
)
def test_a_failing_template_says_where(program: str, said: str) -> None:
    with pytest.raises(ChatTemplateError, match=said):
        render(program)


@pytest.mark.parametrize(
    "program",
    [
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}{{ 'x'.rjust(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ ['x'] | map('center', 1000000000) | list }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ '%1000000000s' % 'x' }}",
        "{{ '%*s' % (1000000000, 'x') }}",
        "{{ '%99999s' * 1000 % 'x' }}",
        "{{ ('%99999s' * 1000) | format('x') }}",
        "{{ '{:1000000000}'.format('x') }}",
        "{{ '{:{}}'.format('x', '1000000000') }}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
        "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
        "{{ ('x' * 100000) | replace('', 'y' * 100000) }}",
        "{{ ('x' * 100000).join('y' * 100000) }}",
        "{{ ('y' * 100000) | join('x' * 100000) }}",
        "{{ ('\t' * 100000).expandtabs(1000000) }}",
        "{{ ('x' * 100000).translate({120: 'y' * 100000}) }}",
        "{{ 5 .to_bytes(1000000000, 'big') }}",
        "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(9) %}{% set n.x = n.x ** 64 %}{% endfor %}",
        NESTED + "{{ n.x }}",
        NESTED + "{{ n.x | tojson }}",
        NESTED + "{{ n.x | string }}",
        NESTED + "{{ n.x ~ '' }}",
        NESTED + "{{ '%s' % n.x }}",
        "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
        "{% set x = 'x' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{{ lipsum(1000000) }}",
    ],
)
def test_a_hostile_template_is_stopped(program: str) -> None:
    """Before it has filled the memory, and without a clock."""
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError, match=r"too large|too many steps|not for templates|undefined"):
            render(program)
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "program",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_an_endless_template_is_stopped(program: str) -> None:
    with pytest.raises(ChatTemplateError, match="too many steps"):
        render(program)


def test_a_long_conversation_is_within_the_limits() -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    program = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m.content | trim + '\n' }}"
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
        "{{ m.content.replace('word', 'w') | length }}{{ '%s' % m.role }}{% endfor %}"
    )
    assert render(program, messages).count("<|user|>") == 500


# From a file


def test_the_template_of_a_file_gets_the_names_of_its_tokens() -> None:
    tokenizer = Tokenizer(source())
    template = ChatTemplate.from_metadata({"tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}"}, tokenizer)
    assert template.render(HELLO) == "<s><|im_end|>"
    nameless = ChatTemplate.from_metadata({"tokenizer.chat_template": "({{ bos_token }})"}, Tokenizer(byte_level()))
    assert nameless.render(HELLO) == "()"


def test_named_templates() -> None:
    tokenizer = Tokenizer(source())
    metadata = {"tokenizer.chat_template": "default", "tokenizer.chat_template.tool_use": "tools"}
    assert ChatTemplate.from_metadata(metadata, tokenizer).source == "default"
    assert ChatTemplate.from_metadata(metadata, tokenizer, "tool_use").source == "tools"
    assert ChatTemplate.from_metadata(metadata, tokenizer, CHATML).source == CHATML
    with pytest.raises(UnsupportedError, match=r"no chat template named 'rag'; it has templates named tool_use"):
        ChatTemplate.from_metadata(metadata, tokenizer, "rag")


def test_a_file_without_a_template_never_gets_another() -> None:
    tokenizer = Tokenizer(source())
    with pytest.raises(UnsupportedError, match=r"no tokenizer\.chat_template"):
        ChatTemplate.from_metadata({}, tokenizer)
    with pytest.raises(UnsupportedError, match="templates named rag: name one"):
        ChatTemplate.from_metadata({"tokenizer.chat_template.rag": "x"}, tokenizer)
    for damaged in (b"\xff", 7, ["x"]):
        with pytest.raises(FormatError, match="chat_template is not a UTF-8 text"):
            ChatTemplate.from_metadata({"tokenizer.chat_template": damaged}, tokenizer)


# Tokens


def test_special_tokens_of_the_template_become_tokens() -> None:
    tokenizer = Tokenizer(source())
    ids = encode_chat(tokenizer, ChatTemplate(CHATML), HELLO)
    assert ids[0] == 257
    assert ids.count(257) == 2
    assert ids.count(258) == 1
    assert tokenizer.decode(ids, skip_special=False) == render(CHATML)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("program", ["{{ bos_token }}hi", "hi", ""])
def test_bos_comes_once(program: str, add_bos: bool) -> None:
    tokenizer = Tokenizer(source(add_bos_token=add_bos))
    template = ChatTemplate.from_metadata({"tokenizer.chat_template": program}, tokenizer)
    ids = encode_chat(tokenizer, template, HELLO)
    assert ids.count(256) == (1 if add_bos or "bos" in program else 0)
    assert tokenizer.decode(ids) == program.removeprefix("{{ bos_token }}")
    assert 256 not in ids[1:]
