"""Tokenizer: encoding, decoding, special tokens and damaged metadata, on vocabularies small enough to check by hand."""

from __future__ import annotations

import random
import string
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as library
from gguf import GGUFWriter
from vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Source,
    byte_level,
    keys,
    merge_by_rank,
    merge_by_score,
    sentencepiece,
    spelled,
    split_words,
)

from fasa_py.bpe import LibraryEncoder
from fasa_py.errors import FormatError, UnsupportedError
from fasa_py.tokenizer import Tokenizer

LETTERS = {letter: -100.0 - i for i, letter in enumerate("▁" + string.ascii_lowercase)}
HELLO = {"he": -1.0, "ll": -2.0, "hell": -3.0, "hello": -4.0, "▁hello": -5.0, "▁w": -6.0}


def spm(pieces: dict[str, float] | None = None, **more: Any) -> Tokenizer:
    return Tokenizer(sentencepiece({**LETTERS, **(HELLO if pieces is None else pieces)}, **more))


def texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_text(token) for token in ids]


# SentencePiece


def test_spm_merges_by_score() -> None:
    tokenizer = spm()
    assert texts(tokenizer, tokenizer.encode("hello world")) == ["▁hello", "▁w", "o", "r", "l", "d"]


def test_spm_equals_the_naive_merger_on_vocabularies_with_ties_and_gaps() -> None:
    rng = random.Random(1)
    n_ties = 0
    for _ in range(150):
        alphabet = "▁abc日"
        # Some characters are no tokens themselves; scores repeat.
        pieces = {c: -9.0 for c in alphabet if rng.random() < 0.8}
        for _ in range(rng.randint(1, 30)):
            pieces["".join(rng.choices(alphabet, k=rng.randint(2, 6)))] = float(rng.randint(-5, 0))
        n_ties += len(set(pieces.values())) < len(pieces)
        tokenizer = Tokenizer(sentencepiece(pieces, add_space_prefix=False))
        for _ in range(10):
            text = "".join(rng.choices(" abc日", k=rng.randint(0, 90)))
            expected: list[int] = []
            for symbol in merge_by_score(text.replace(" ", "▁"), pieces):
                if symbol in pieces:
                    expected.append(tokenizer._table.ids[symbol])
                else:
                    expected += [tokenizer._table.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
            assert tokenizer.encode(text) == expected, (text, pieces)
    assert n_ties > 100


def test_spm_falls_back_to_bytes_then_to_unknown() -> None:
    tokenizer = spm()
    assert texts(tokenizer, tokenizer.encode("é", special=False))[1:] == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("a\x00é🦙\n")) == "a\x00é🦙\n"
    without = spm(with_bytes=False)
    assert without.encode("aé🦙")[-2:] == [without.unk_id, without.unk_id]


def test_spm_without_any_token_for_a_character_says_which() -> None:
    tokenizer = Tokenizer(Source(keys(model="llama", tokens=["▁", "<s>", "</s>", "a"], scores=np.zeros(4, np.float32))))
    assert texts(tokenizer, tokenizer.encode("a")) == ["▁", "a"]
    with pytest.raises(ValueError, match="no token for 'é'"):
        tokenizer.encode("aé")


@pytest.mark.parametrize(("prefix", "first"), [(True, "▁hello"), (False, "hello")])
def test_spm_space_prefix(prefix: bool, first: str) -> None:
    tokenizer = spm(add_space_prefix=prefix)
    assert texts(tokenizer, tokenizer.encode("hello")) == [first]
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.decode(tokenizer.encode(" hello", add_bos=True)) == " hello"


def test_spm_puts_the_space_after_each_special_token() -> None:
    tokenizer = spm()
    ids = tokenizer.encode("hello</s>hello", special=True)
    assert texts(tokenizer, ids) == ["▁hello", "</s>", "▁hello"]


def test_spm_stream_keeps_the_space_that_decode_takes_off() -> None:
    tokenizer = spm()
    ids = tokenizer.encode("hello")
    assert (tokenizer.stream().push(ids[0]), tokenizer.decode(ids)) == (" hello", "hello")


# Byte-level BPE


def test_bpe_equals_the_naive_merger() -> None:
    rng = random.Random(2)
    for _ in range(60):
        symbols = list(dict.fromkeys(spelled(" abé")))
        merges: list[str] = []
        for _ in range(rng.randint(1, 25)):
            left, right = rng.choices(symbols, k=2)
            merges.append(f"{left} {right}")
            symbols.append(left + right)
        tokenizer = Tokenizer(byte_level(merges, pre="gpt-2"))
        for _ in range(10):
            text = "".join(rng.choices(" abé", k=rng.randint(0, 30)))
            words = split_words(text, [r" ?\p{L}+|\s+(?!\S)|\s+"])
            expected = [symbol for word in words for symbol in merge_by_rank(spelled(word), merges)]
            assert texts(tokenizer, tokenizer.encode(text)) == expected, (text, merges)


def test_of_a_merge_listed_twice_the_first_counts() -> None:
    tokenizer = Tokenizer(byte_level(["a b", "b c", "a b"]))
    assert texts(tokenizer, tokenizer.encode("abc")) == ["ab", "c"]


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", ["abc"]), ("qwen2", ["a", "bc"])])
def test_llama3_takes_a_word_that_is_a_token_whole(pre: str, expected: list[str]) -> None:
    tokenizer = Tokenizer(byte_level(["b c", "a b", "ab c"], pre=pre))
    assert texts(tokenizer, tokenizer.encode("abc")) == expected


@pytest.mark.parametrize("text", ["", " ", "\n\n \t", "a\x00b", "naïve 🦙 e\u0301", "\ufffd\u2028", "x" * 100_000])
def test_bpe_round_trip(text: str) -> None:
    tokenizer = Tokenizer(byte_level(["a b", "x x", "xx xx"]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("make", [spm, lambda: Tokenizer(byte_level())])
def test_empty_text_is_no_token(make: Any) -> None:
    assert make().encode("") == []


def test_a_very_long_text_of_both_kinds() -> None:
    text = "the quick brown 🦙 fox, 12345 times\n" * 30_000
    for tokenizer in (spm(), Tokenizer(byte_level(["t h", "th e"], pre="llama-bpe"))):
        ids = tokenizer.encode(text)
        assert len(ids) > 500_000
        assert tokenizer.decode(ids) == text


def test_a_text_on_which_the_library_gives_up_is_an_error_of_ours() -> None:
    endless = library.Tokenizer(library.models.BPE())
    endless.pre_tokenizer = library.pre_tokenizers.Split(library.Regex("(a|a)*bc"), "isolated")
    with pytest.raises(ValueError, match=r"could not split the text: .*retry-limit"):
        LibraryEncoder(endless).encode_batch(["a" * 60 + "xbc"])


def test_a_byte_without_a_token_is_a_warning() -> None:
    source = byte_level()
    tokens = source.metadata["tokenizer.ggml.tokens"]
    tokens[tokens.index("a")] = "<gone>"
    with pytest.warns(UserWarning, match="no token for 1 bytes .*0x61"):
        ids = Tokenizer(source).encode("abc")
    assert [tokens[token] for token in ids] == ["b", "c"]


# Plain-text BPE and WordPiece


def gemma4(**more: Any) -> Source:
    pieces = ["\n", "\n\n", "▁", "a", "b", "▁a", "▁▁"]
    special = {"<pad>": CONTROL, "<bos>": CONTROL, "<eos>": CONTROL, "<unk>": UNKNOWN}
    tokens = [*special, *pieces, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = np.array([*special.values(), *[NORMAL] * len(pieces), *[BYTE] * 256], np.int32)
    given = {"model": "gemma4", "tokens": tokens, "token_type": types, "merges": ["▁ a", "▁ ▁", "\n \n"]}
    return Source(keys(**{**given, "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False, **more}))


def test_gemma4_merges_plain_text_and_takes_newline_runs_whole() -> None:
    tokenizer = Tokenizer(gemma4())
    assert texts(tokenizer, tokenizer.encode("a a\n\nb\n\n\nc")) == (["a", "▁a", "\n\n", "b", "\n\n", "\n", "<0x63>"])
    assert tokenizer.decode(tokenizer.encode(" a  b\n🦙")) == " a  b\n🦙"
    assert tokenizer.add_bos  # whatever the file says


def test_bert_takes_the_longest_piece_from_the_left() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "aff", "affa", "ble", "▁,", "▁cafe"]
    types = np.array([CONTROL] * 4 + [NORMAL] * 6, np.int32)
    tokenizer = Tokenizer(
        Source(keys(model="bert", tokens=tokens, token_type=types, unknown_token_id=1, bos_token_id=2))
    )
    ids = tokenizer.encode("Unaffable,CAFÉ unaffx", add_bos=True)
    assert texts(tokenizer, ids) == ["[CLS]", "▁un", "affa", "ble", "▁,", "▁cafe", "[UNK]"]


# Special tokens

MARKS = {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<|im|>": USER_DEFINED, "<pad9>": UNUSED}


def test_special_tokens_are_read_only_when_asked() -> None:
    tokenizer = Tokenizer(byte_level(special=MARKS))
    text = "<|im_start|>hi<|im_end|>"
    assert texts(tokenizer, tokenizer.encode(text, special=True)) == ["<|im_start|>", "h", "i", "<|im_end|>"]
    plain = tokenizer.encode(text)
    assert max(plain) < 256
    assert tokenizer.decode(plain) == text


def test_user_defined_tokens_are_always_read_and_unused_ones_never() -> None:
    tokenizer = Tokenizer(byte_level(special=MARKS))
    assert texts(tokenizer, tokenizer.encode("a<|im|>b")) == ["a", "<|im|>", "b"]
    assert max(tokenizer.encode("<pad9>", special=True)) < 256


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a><a>x", ["<a><a>x"]),  # the longest of those with one beginning
        ("<a><a>y", ["<a>", "<a>", "y"]),
        ("<a><a>", ["<a>", "<a>"]),
        ("<a>b>c>d", ["<", "a", ">b>c>d"]),  # a longer one further right goes first
        ("<a>b>", ["<a>b>"]),
        ("z<a>b>z<a>", ["z", "<a>b>", "z", "<a>"]),
    ],
)
def test_the_longest_special_token_goes_first(text: str, expected: list[str]) -> None:
    overlapping = {"<a>": CONTROL, "<a><a>x": CONTROL, "<a>b>": CONTROL, ">b>c>d": CONTROL}
    tokenizer = Tokenizer(byte_level(special=overlapping))
    assert texts(tokenizer, tokenizer.encode(text, special=True)) == expected


def test_phi3_special_tokens_take_the_white_space_after_them() -> None:
    source = byte_level(special={"<|user|>": CONTROL, "<s>": CONTROL})
    source.metadata["general.name"] = "Phi-3 mini"
    tokenizer = Tokenizer(source)
    ids = tokenizer.encode("<s> <|user|>\n hi <|user|>", special=True)
    assert texts(tokenizer, ids) == ["<s>", "Ġ", "<|user|>", "h", "i", "Ġ", "<|user|>"]


def test_bos_goes_first_when_asked() -> None:
    tokenizer = Tokenizer(byte_level(special=MARKS, bos_token_id=256))
    assert tokenizer.encode("", add_bos=True) == [256]
    assert tokenizer.encode("a", add_bos=True) == [256, *tokenizer.encode("a")]
    with pytest.raises(ValueError, match="no BOS"):
        Tokenizer(byte_level()).encode("a", add_bos=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (lambda: sentencepiece(LETTERS), True),
        (lambda: sentencepiece(LETTERS, add_bos_token=False), False),
        (lambda: byte_level(pre="llama-bpe", special=MARKS, bos_token_id=256), True),
        (lambda: byte_level(pre="llama-bpe"), False),
        (lambda: byte_level(pre="tekken", special=MARKS, bos_token_id=256), True),
        (lambda: byte_level(pre="qwen2", special=MARKS, bos_token_id=256), False),
        (lambda: byte_level(pre="qwen2", special=MARKS, bos_token_id=256, add_bos_token=True), True),
    ],
)
def test_whether_bos_is_expected(source: Any, expected: bool) -> None:
    assert Tokenizer(source()).add_bos is expected


def test_ids_that_end_generation() -> None:
    special = {"<|endoftext|>": CONTROL, "<|im_end|>": NORMAL, "<|fim_pad|>": CONTROL, "<|fim_middle|>": CONTROL}
    tokenizer = Tokenizer(byte_level(special=special, eos_token_id=0))
    assert tokenizer.eog_ids == {0, 256, 257, 258}
    assert tokenizer.eot_id == 257  # the turn's end before the text's
    assert tokenizer.is_special(257)  # though the file calls it normal


def test_names_that_end_nothing_in_two_families() -> None:
    harmony = {"<|end|>": CONTROL, "<|return|>": CONTROL, "<|call|>": CONTROL, "<|channel|>": CONTROL}
    tokenizer = Tokenizer(byte_level(special=harmony, eos_token_id=257))
    assert tokenizer.eog_ids == {257, 258}
    assert not tokenizer.is_special(256)
    assert tokenizer.decode([259]) == "<|channel|>"
    gemma = Tokenizer(byte_level(special={"</s>": CONTROL, "<|tool_response>": CONTROL}))
    assert gemma.eog_ids == {257}


# Decoding


def test_decode_leaves_special_tokens_out_unless_asked() -> None:
    tokenizer = Tokenizer(byte_level(special=MARKS))
    ids = [256, *tokenizer.encode("hi"), 258, 257, 259]
    assert tokenizer.decode(ids) == "hi<|im|>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<|im|><|im_end|>"
    assert "".join(map(tokenizer.stream(skip_special=False).push, ids)) == tokenizer.decode(ids, skip_special=False)
    assert [tokenizer.is_special(token) for token in (0, 256, 258)] == [False, True, False]


@pytest.mark.parametrize("make", [spm, lambda: Tokenizer(byte_level())])
def test_stream_never_cuts_a_character(make: Any) -> None:
    tokenizer, text = make(), "é🦙e\u0301 \x00"
    ids = tokenizer.encode(text)
    assert len(ids) >= len(text.encode())  # one token a byte
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces).removeprefix(" ") == text
    assert "\ufffd" not in "".join(pieces)
    assert stream.flush() == ""


def test_stream_replaces_invalid_and_unfinished_bytes() -> None:
    tokenizer = spm()
    ids = [tokenizer._table.ids[f"<0x{byte:02X}>"] for byte in (0xFF, 0xF0, 0x9F, 0x41, 0xF0, 0x9F)]
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["\ufffd", "", "", "\ufffdA", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(ids[3]) == "A"
    assert tokenizer.decode(ids) == "\ufffd\ufffdA\ufffd"


def test_bytes_of_tokens() -> None:
    tokenizer = Tokenizer(byte_level(["Ã ©"], special=MARKS))
    assert tokenizer.token_bytes(256) == "é".encode()
    assert tokenizer.token_bytes(257) == b"<|im_start|>"
    assert tokenizer.token_bytes(260) == b""  # unused
    assert tokenizer.token_text(256) == "Ã©"
    assert spm().token_bytes(spm().encode("hello")[0]) == b" hello"


def test_a_character_outside_the_byte_alphabet_stands_for_itself() -> None:
    source = byte_level(special={"日": NORMAL})
    assert Tokenizer(source).token_bytes(256) == "日".encode()


@pytest.mark.parametrize("token", [-1, 256, 10**12])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    tokenizer = Tokenizer(byte_level())
    for call in (tokenizer.token_bytes, tokenizer.token_text, tokenizer.is_special, tokenizer.stream().push):
        with pytest.raises(ValueError, match=f"{token} is outside the vocabulary of 256"):
            call(token)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([0, token])


@pytest.mark.parametrize("make", [spm, lambda: Tokenizer(byte_level())])
def test_a_lone_surrogate_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D800, at position 2"):
        make().encode("ab\ud800c")


# Several threads, sources


def test_several_threads_get_what_one_gets() -> None:
    prompts = [f"hello <|im_end|> {i} wörld" * (i + 1) for i in range(60)]
    for source in (byte_level(["h e", "l l"], special=MARKS), sentencepiece({**LETTERS, **HELLO}, special=MARKS)):
        alone, shared = Tokenizer(source), Tokenizer(source)
        work = [(text, special) for text in prompts for special in (True, False)]
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(shared.encode, text, special=special) for text, special in work]
            found = [job.result() for job in jobs]
        assert found == [alone.encode(text, special=special) for text, special in work]


def test_a_vocabulary_only_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    source = byte_level(["a b"], special=MARKS)
    tokens = source.metadata["tokenizer.ggml.tokens"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(source.metadata["tokenizer.ggml.token_type"].tolist())
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(258)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = Tokenizer(path)
    assert texts(tokenizer, tokenizer.encode("ab")) == ["ab"]
    assert Tokenizer(str(path)).eos_id == 258
    assert (tokenizer.model_name, tokenizer.pre, tokenizer.n_vocab) == ("gpt2", "qwen2", len(tokens))


# Damaged metadata


def changed(source: Source, **values: Any) -> Source:
    """The source with other values under ``tokenizer.ggml.*``; None removes the key."""
    metadata = {**source.metadata, **keys(**values)}
    return Source({key: value for key, value in metadata.items() if value is not None})


BPE = byte_level(["a b", "ab c"], special=MARKS, bos_token_id=257, eos_token_id=258)
SPM = sentencepiece({**LETTERS, **HELLO})
N_BPE, N_SPM = (len(source.metadata["tokenizer.ggml.tokens"]) for source in (BPE, SPM))


@pytest.mark.parametrize(
    ("source", "values", "named"),
    [
        (BPE, {"model": None}, "model is missing"),
        (BPE, {"model": b"\xff"}, "model is not valid UTF-8"),
        (BPE, {"model": 7}, "model must be of type str"),
        (BPE, {"pre": 1}, "pre must be of type str"),
        (BPE, {"tokens": None}, "tokens is missing"),
        (BPE, {"tokens": []}, "tokens is empty"),
        (BPE, {"tokens": np.zeros(4, np.int32)}, "tokens must be of type list"),
        (BPE, {"tokens": "a"}, "tokens must be of type list"),
        (BPE, {"tokens": ["a", b"\xff\xfe"]}, r"tokens\[1\] is not valid UTF-8"),
        (BPE, {"tokens": ["a", "b", "a"]}, "tokens: 'a' has the ids 0 and 2"),
        (BPE, {"token_type": np.ones(N_BPE - 1, np.int32)}, f"token_type has {N_BPE - 1} elements for {N_BPE}"),
        (BPE, {"token_type": np.ones(N_BPE + 1, np.int32)}, "token_type has"),
        (BPE, {"token_type": np.ones(N_BPE, np.float32)}, "token_type must be an array of int32"),
        (BPE, {"token_type": ["1"] * N_BPE}, "token_type must be an array of int32"),
        (BPE, {"token_type": 1}, "token_type must be an array"),
        (BPE, {"token_type": np.full(N_BPE, BYTE, np.int32)}, r"tokens\[0\] is a byte token, but"),
        (BPE, {"merges": None}, "merges is missing"),
        (BPE, {"merges": np.zeros(1, np.uint8)}, "merges must be of type list"),
        (BPE, {"merges": ["a b", "ab"]}, r"merges\[1\] is not two tokens"),
        (BPE, {"merges": ["a "]}, r"merges\[0\] is not two tokens"),
        (BPE, {"merges": ["a b c"]}, r"merges\[0\] is not two tokens"),
        (BPE, {"merges": ["", "a b"]}, r"merges\[0\] is not two tokens"),
        (BPE, {"merges": ["a b", "zz a"]}, r"merges\[1\]: 'zz a' needs 'zz'"),
        (BPE, {"merges": ["a b", "b c"]}, r"merges\[1\]: 'b c' needs 'bc'"),
        (BPE, {"merges": ["a b", b"\xff \xfe"]}, r"merges\[1\] is not valid UTF-8"),
        (BPE, {"bos_token_id": N_BPE}, f"bos_token_id is {N_BPE}, outside the vocabulary"),
        (BPE, {"eos_token_id": -1}, "eos_token_id is -1"),
        (BPE, {"eot_token_id": 2**32 - 1}, "eot_token_id is 4294967295"),
        (BPE, {"eos_token_id": 1.5}, "eos_token_id must be of type int"),
        (BPE, {"eos_token_id": True}, "eos_token_id must be of type int"),
        (BPE, {"add_bos_token": 1}, "add_bos_token must be of type bool"),
        (BPE, {"add_bos_token": True, "bos_token_id": None}, "add_bos_token is true, but"),
        (BPE, {"add_eos_token": True, "eos_token_id": None}, "add_eos_token is true, but"),
        (SPM, {"scores": None}, "scores is missing"),
        (SPM, {"scores": np.zeros(N_SPM, np.uint8)}, "scores must be an array of float32 or int32, not uint8"),
        (SPM, {"scores": np.zeros(N_SPM - 1, np.float32)}, "scores has"),
        (SPM, {"scores": np.zeros(N_SPM + 1, np.float32)}, "scores has"),
        (SPM, {"scores": np.full(N_SPM, np.nan, np.float32)}, r"scores\[0\] is not a number"),
        (SPM, {"scores": ["0"] * N_SPM}, "scores must be an array"),
        (SPM, {"add_space_prefix": "yes"}, "add_space_prefix must be of type bool"),
        (SPM, {"unknown_token_id": N_SPM}, "unknown_token_id is"),
        (Source(keys(model="bert", tokens=["a"])), {}, "unknown_token_id is missing"),
    ],
)
def test_damaged_metadata_is_refused_by_name(source: Source, values: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=rf"tokenizer\.ggml\.{named}"):
        Tokenizer(changed(source, **values))


@pytest.mark.parametrize("model", ["t5", "rwkv", "plamo2", "no_vocab", "", "GPT2"])
def test_an_unsupported_model_is_named_with_the_supported_ones(model: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{model}'; supported are gpt2, llama, gemma4, bert"):
        Tokenizer(changed(BPE, model=model))


@pytest.mark.parametrize(("pre", "said"), [("made-up", "'made-up' is unknown"), (None, "pre is missing")])
def test_an_unknown_way_to_split_is_a_warning_and_the_default(pre: str | None, said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        tokenizer = Tokenizer(changed(BPE, pre=pre))
    assert tokenizer.encode("abc 1234!") == Tokenizer(changed(BPE, pre="default")).encode("abc 1234!")


def test_a_useless_id_out_of_range_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="padding_token_id is 70000"):
        tokenizer = Tokenizer(changed(BPE, padding_token_id=70_000))
    assert tokenizer.pad_id is None


def test_odd_but_harmless_metadata() -> None:
    empty = Tokenizer(changed(BPE, tokens=["", *BPE.metadata["tokenizer.ggml.tokens"][1:]]))
    assert empty.token_text(0) == "[EMPTY_0]"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly all bytes are missing
        single = Tokenizer(Source(keys(model="gpt2", pre="qwen2", tokens=["a"], merges=[])))
        assert single.encode("ab") == [0]
    assert Tokenizer(changed(SPM, scores=np.zeros(N_SPM, np.int32))).encode("hello")


def test_random_damage_is_refused_or_harmless() -> None:
    rng = random.Random(3)
    junk: list[Any] = [
        None, 0, -1, 2**63, 1.5, True, "", "x", b"\xff", [], ["a"], [b"\xff"], [""], np.zeros(0, np.int32),
        np.zeros(3, np.uint8), np.full(N_BPE, 9, np.int32), np.full(N_SPM, np.inf, np.float32),
    ]  # fmt: skip
    names = sorted({key.removeprefix("tokenizer.ggml.") for key in (*BPE.metadata, *SPM.metadata)})
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(600):
            source = changed(rng.choice((BPE, SPM)), **{rng.choice(names): rng.choice(junk) for _ in range(2)})
            try:
                tokenizer = Tokenizer(source)
                tokenizer.decode(tokenizer.encode("hello <|im_end|> 12 é", special=True))
                outcomes.add("works")
            except (FormatError, UnsupportedError) as error:
                outcomes.add(type(error).__name__)
            except ValueError as error:
                assert "no token for" in str(error)
    assert outcomes == {"works", "FormatError", "UnsupportedError"}
