"""How BPE vocabularies split text into words before merging: ``tokenizer.ggml.pre`` -> :class:`PreTokenizer`.

The patterns are those of the models' own tokenizers, in the form that llama.cpp gives them where the two differ (it
knows only the category "letter", so upper and lower case are told apart in ASCII alone). Each pattern splits every
piece that the one before it left: matches and the text between matches become pieces of their own.

Patterns are written for Oniguruma, the engine inside the ``tokenizers`` library. Runs of white space are matched
possessively where backtracking could not change the result, because the engine gives up after ten million steps back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PreTokenizer:
    """One way to split, and what a file with that way implies unless its metadata say otherwise."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges say
    add_bos: bool = False
    bytes_as_chars: bool = True  # tokens spell bytes as GPT-2 does; False: plain UTF-8 with U+2581 for a space
    newline_runs_whole: bool = False  # a run of newlines that is a token is taken whole


# Parts. \s, \p{..}: Unicode; [0-9], [A-Z], [a-z]: ASCII.
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LINES = r"(?:[^\S\r\n]*+[\r\n]++)++"  # = \s*[\r\n]+
_SPACES = r"\s+(?!\S)|\s+"
_NOT_LOWER, _NOT_UPPER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_CASED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}*{_NOT_UPPER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}+{_NOT_UPPER}*%s"
_SYMBOLS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_CJK_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_WIDE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
_HAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
# Groups of three digits counted from the right; what is left over stays with the text before it.
_DIGITS_FROM_RIGHT = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*+(?!\p{N}))"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_DEEPSEEK3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}|{_SPACES}"
)
# Cased letters as DeepSeek-LLM lists them, by first and last code point.
_CASED_LETTERS = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in (
        (0x41, 0x5A), (0x61, 0x7A), (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA), (0x1BC, 0x1BF),
        (0x1C4, 0x293), (0x295, 0x2AF), (0x370, 0x373), (0x376, 0x377), (0x37B, 0x37D), (0x37F, 0x37F),
        (0x386, 0x386), (0x388, 0x38A), (0x38C, 0x38C), (0x38E, 0x3A1), (0x3A3, 0x3F5), (0x3F7, 0x481),
        (0x48A, 0x52F), (0x531, 0x556), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x13F8, 0x13FD), (0x1C90, 0x1CBA),
        (0x1CBD, 0x1CBF), (0x1D00, 0x1D2B), (0x1D6B, 0x1D77), (0x1D79, 0x1D9A), (0x1E00, 0x1F15), (0x1F18, 0x1F1D),
        (0x1F20, 0x1F45), (0x1F48, 0x1F4D), (0x1F50, 0x1F57), (0x1F59, 0x1F59), (0x1F5B, 0x1F5B), (0x1F5D, 0x1F5D),
        (0x1F5F, 0x1F7D), (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC), (0x1FBE, 0x1FBE), (0x1FC2, 0x1FC4), (0x1FC6, 0x1FCC),
        (0x1FD0, 0x1FD3), (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC), (0x1FF2, 0x1FF4), (0x1FF6, 0x1FFC), (0x2102, 0x2102),
        (0x2107, 0x2107), (0x210A, 0x2113), (0x2115, 0x2115), (0x2119, 0x211D), (0x2124, 0x2124), (0x2126, 0x2126),
        (0x2128, 0x2128), (0x212A, 0x212D), (0x212F, 0x2134), (0x2139, 0x2139), (0x213C, 0x213F), (0x2145, 0x2149),
        (0x214E, 0x214E), (0x2183, 0x2184), (0x2C00, 0x2C7B), (0x2C7E, 0x2CE4), (0x2CEB, 0x2CEE), (0x2CF2, 0x2CF3),
        (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F), (0xA771, 0xA787), (0xA78B, 0xA78E), (0xAB70, 0xABBF),
        (0xFB00, 0xFB06), (0xFB13, 0xFB17), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0x10400, 0x1044F),
        (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2), (0x10CC0, 0x10CF2), (0x118A0, 0x118DF),
        (0x1E900, 0x1E943),
    )
)  # fmt: skip


def _words(digits: str, *, word: str = _WORD, symbols: str = _SYMBOLS) -> str:
    return f"{_CONTRACTION}|{word}|{digits}|{symbols}|{_LINES}|{_SPACES}"


_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")

GPT2 = PreTokenizer((_GPT2,))
LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
QWEN2 = PreTokenizer((_QWEN2,))
DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", _CJK_KANA, _DEEPSEEK3))
BLOOM = PreTokenizer((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",))
TEKKEN = PreTokenizer(
    (_CASED_WORD % ("", "") + rf"|\p{{N}}|{_SYMBOLS_SLASH}|{_LINES}|{_SPACES}",), ignore_merges=True, add_bos=True
)
GPT4O = PreTokenizer(
    (_CASED_WORD % (_CONTRACTION + "?", _CONTRACTION + "?") + rf"|\p{{N}}{{1,3}}|{_SYMBOLS_SLASH}|{_LINES}|{_SPACES}",)
)
GRANITE_MULTI = PreTokenizer((GPT4O.patterns[0].replace(r"[\p{L}&&", r"[\p{L}\p{M}&&"),), ignore_merges=True)
# Letters and marks of either case, then a contraction.
_MARKED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?"
TINY_AYA = PreTokenizer((_DIGITS_FROM_RIGHT, rf"{_MARKED_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS_SLASH}|{_LINES}|{_SPACES}"))
GEMMA4 = PreTokenizer((r"[^\n]+|\n+",), add_bos=True, bytes_as_chars=False, newline_runs_whole=True)
DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

_FAMILIES: tuple[tuple[PreTokenizer, str], ...] = (
    (DEFAULT, "default"),
    (LLAMA3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (replace(LLAMA3, ignore_merges=False, add_bos=False), "dbrx smaug-bpe chatglm-bpe glm4"),
    (
        PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
        "minicpm5",
    ),
    (
        # White space goes in runs of falling powers of two.
        PreTokenizer(
            (
                rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_LINES}|"
                + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
                + r"|\s",
            )
        ),
        "jais-2",
    ),
    (
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
                r"\s+$",
                _CJK_WIDE,
                r"\p{N}+",
            )
        ),
        "deepseek-llm",
    ),
    (PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, r"\p{N}")), "deepseek-coder"),
    (DEEPSEEK3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (
        PreTokenizer(
            (
                r"\p{N}{1,3}",
                _CJK_KANA,
                rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|"
                rf" ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}",
                r"\p{N}",
            )
        ),
        "spark2_5",
    ),
    (
        PreTokenizer(
            (
                "[\uac00-\ud7a3\u3131-\u318e]+"
                "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
                f"|[\u3105-\u312f]+|{_CJK_KANA}",
                rf"{_MARKED_WORD}|\p{{N}}|{_SYMBOLS_SLASH}|{_LINES}|{_SPACES}",
            ),
            ignore_merges=True,
        ),
        "youtu",
    ),
    (PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (
        GPT2,
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code"
        " roberta-bpe mpt olmo jais trillion granite-docling exaone4",
    ),
    (SINGLE_DIGITS, "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (
        QWEN2,
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 bailingmoe"
        " bailingmoe2 llada-moe",
    ),
    (
        PreTokenizer(
            (
                _words(
                    r"\p{N}",
                    word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                    symbols=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                ),
            )
        ),
        "qwen35",
    ),
    (PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_LINES}|{_SPACES}",)), "ufakzeka"),
    (PreTokenizer((r"[^\n]+|\n+", _QWEN2)), "laguna"),
    (PreTokenizer((_words(r"\p{N}", symbols=r" ?[^\s\p{L}\p{N}\r\n]+"),)), "seed-coder"),
    (
        PreTokenizer(
            (
                _words(
                    r"\p{N}",
                    word=r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                    symbols=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                ),
            )
        ),
        "exaone-moe",
    ),
    (BLOOM, "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((*BLOOM.patterns, r"\p{N}")), "viking"),
    (TEKKEN, "tekken"),
    (GPT4O, "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (GRANITE_MULTI, "granite-embed-multi-97m"),
    (TINY_AYA, "tiny_aya cohere2moe"),
    (
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
        "chameleon",
    ),
    (
        PreTokenizer(
            (
                rf"{_HAN}+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?|"
                rf"\p{{N}}{{1,3}}|{_SYMBOLS}|{_LINES}|{_SPACES}",
            )
        ),
        "kimi-k2",
    ),
    (PreTokenizer((r"\p{N}+", r"[0-9]{3}(?=(?:[0-9]{3})*+(?![0-9]))")), "superbpe"),
    (
        PreTokenizer(
            (
                _DIGITS_FROM_RIGHT,
                "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
                "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
                "\u1100-\u11ff]+",
                _DEEPSEEK3,
            )
        ),
        "afmoe",
    ),
    (GEMMA4, "gemma4 granite-embed-multi-311m"),
    (replace(GEMMA4, add_bos=False, newline_runs_whole=False), "sarvam-moe"),
)

PRETOKENIZERS: dict[str, PreTokenizer] = {name: family for family, names in _FAMILIES for name in names.split()}
