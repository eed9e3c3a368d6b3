"""Word splitting of every family, against the published patterns run by another engine, and by hand."""

from __future__ import annotations

import random

import pytest
from tokenizers import Regex, pre_tokenizers
from vocabularies import split_words

from fasa_py.pretokenizers import PRETOKENIZERS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NOT_LOWER, NOT_UPPER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"


def words(digits: str) -> str:
    return (
        rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def cased(contraction: str, digits: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{NOT_LOWER}*{NOT_UPPER}+{contraction}|{lead}{NOT_LOWER}+{NOT_UPPER}*{contraction}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


PUBLISHED = {
    "gpt-2": [GPT2],
    "llama-bpe": [words(r"\p{N}{1,3}")],
    "qwen2": [words(r"\p{N}")],
    "bailingmoe": [words(r"\p{N}").replace(r"\s*[\r\n]+", r"\s*[\r\n]")],
    "qwen35": [
        words(r"\p{N}").replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
    ],
    "seed-coder": [words(r"\p{N}").replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")],
    "starcoder": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"],
    "default": [r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", DEEPSEEK3],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u0800-\u9fa5\uac00-\ud7ff]+", r"\p{N}"],
    "tekken": [cased("", r"\p{N}")],
    "gpt-4o": [cased(CONTRACTION + "?", r"\p{N}{1,3}")],
    "laguna": ["[^\n]+|\n+", words(r"\p{N}")],
    "minicpm5": [r"\p{N}{1,3}", words(r"\p{N}+")],
}
# Letters of both cases, digits of two scripts, marks, punctuation and symbols inside and outside ASCII, white space of
# every kind, an emoji and an unassigned character. No CJK: the stand-in of its letters is not in the CJK ranges.
ALPHABET = ["'s", "'LL", "'d", *"aBzéÉß12٣½e\u0301\u0903'.,!/-_$+~`«»—€©  \t\n\n\r\v\u00a0\u2003\u2028\x00🦙\u0378"]


def split(name: str, text: str) -> list[str]:
    patterns = PRETOKENIZERS[name].patterns
    steps = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns])
    return [piece for piece, _ in steps.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_text_splits_as_the_published_pattern_says(name: str) -> None:
    rng = random.Random(name)
    for _ in range(800):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(1, 24)))
        assert split(name, text) == split_words(text, PUBLISHED[name]), repr(text)


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_nothing_is_lost(name: str) -> None:
    rng = random.Random(name)
    alphabet = [*ALPHABET, *"中文かなカ한국ไทยខ်ㄅ、。…فت1234567"]
    for _ in range(200):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 40)))
        assert "".join(split(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("llama-bpe", "It's 12345 o'clock", ["It", "'s", " ", "123", "45", " o", "'clock"]),
        ("qwen2", "year 2024!\n\n ok", ["year", " ", "2", "0", "2", "4", "!\n\n", " ok"]),
        ("qwen35", "e\u0301tude", ["e\u0301tude"]),
        ("qwen2", "e\u0301tude", ["e", "\u0301tude"]),
        ("ufakzeka", "It's", ["It", "'s"]),
        ("ufakzeka", "It're", ["It", "'re"]),
        ("tekken", "camelCaseHTTP x/", ["camel", "Case", "HTTP", " x", "/"]),
        ("gpt-4o", "we'll GO", ["we'll", " GO"]),
        ("superbpe", "by the way 1234567.", ["by the way ", "1", "234", "567", "."]),
        ("tiny_aya", "n 1234567", ["n", " ", "1", "234", "567"]),
        ("afmoe", "a 1234 中文b", ["a", " ", "1", "234", " ", "中文", "b"]),
        ("kimi-k2", "中文abc 12 don't", ["中文", "abc", " ", "12", " don't"]),
        ("bloom", "hello, world (x)", ["hello", ",", " world", " (", "x", ")"]),
        ("viking", "in 1999.", ["in", " ", "1", "9", "9", "9", "."]),
        ("deepseek-llm", "Hi, 中文 123\n", ["Hi", ",", " ", "中文", " ", "123", "\n"]),
        ("exaone-moe", "가나 다라 1", ["가나 다라", " ", "1"]),
        ("jais-2", "a     b", ["a", "    ", " b"]),
        ("youtu", "한국。中文", ["한국", "。", "中文"]),
        ("spark2_5", "a 12\r\n", ["a", " ", "1", "2", "\r", "\n"]),
        ("chameleon", "IMGIMGABZ x", ["IMGIMGABZ", " x"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("granite-embed-multi-97m", "e\u0301tude", ["e\u0301tude"]),
    ],
)
def test_what_sets_a_family_apart(name: str, text: str, pieces: list[str]) -> None:
    assert split(name, text) == pieces


def test_a_long_run_of_spaces_stays_within_the_limits_of_the_engine() -> None:
    text = " " * 10_500_000 + "x"
    assert [len(piece) for piece in split("qwen2", text)] == [10_499_999, 2]
