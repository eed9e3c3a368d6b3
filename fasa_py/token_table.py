"""The token table of a GGUF file: ``tokenizer.ggml.*`` metadata, checked once, as plain Python values.

Sources: the GGUF specification (keys, token types); defaults, end-of-generation names and exceptions follow llama.cpp,
so that the same file means the same here and there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from enum import IntEnum
from itertools import repeat
from typing import Any

import numpy as np

from .errors import FormatError, UnsupportedError
from .pretokenizers import GEMMA4, PRETOKENIZERS, PreTokenizer
from .special_names import EOG_NAMES, EOM_NAMES, EOT_NAMES, FIM_END_KEYS, FIM_NAMES, SHOWN_NAMES

_PREFIX = "tokenizer.ggml."
SUPPORTED_MODELS = ("gpt2", "llama", "gemma4", "bert")

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type`` of the GGUF specification."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class TokenTable:
    """Tokens and special ids of one file.

    Attributes
    ----------
    model, pre : names as in the file (``pre`` is "" when absent).
    pretokenizer : how a BPE vocabulary splits text; None for ``llama`` and ``bert``.
    tokens : list of str, ``n_vocab`` long; id -> text as stored.
    ids : dict, text -> id.
    types : list of int (:class:`TokenType`), ``n_vocab`` long.
    scores : list of float, ``n_vocab`` long for ``llama``, else empty.
    merges : list of str, "left right", by rank; empty for ``llama`` and ``bert``.
    bos_id, eos_id, eot_id, eom_id, unk_id, pad_id : int or None.
    eog_ids : frozenset of int; any of them ends generation.
    add_bos, add_eos, add_space_prefix : bool.
    lowercase, strip_accents : bool; what a ``bert`` vocabulary does to text first.
    strip_after : frozenset of int; special tokens that swallow the white space after them.

    Raises
    ------
    FormatError : a key is missing, has another type than it must, or contradicts another; the text names the key.
    UnsupportedError : ``tokenizer.ggml.model`` is none of :data:`SUPPORTED_MODELS`.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.model = self._required("model", str)
        if self.model not in SUPPORTED_MODELS:
            raise UnsupportedError(
                f"tokenizer.ggml.model is {self.model!r}; supported are {', '.join(SUPPORTED_MODELS)}"
            )
        self.pre: str = self._optional("pre", str, "")
        self.pretokenizer = self._choose_pretokenizer()
        self.tokens = self._read_tokens()
        self.ids = self._index_tokens()
        self.types = self._read_types()
        self.scores = self._read_scores() if self.model == "llama" else []
        self.merges = self._read_merges() if self.pretokenizer else []
        self._read_special_ids()
        self._read_flags()
        del self._metadata

    # Metadata access

    def _optional(self, name: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(_PREFIX + name)
        if value is None:
            return default
        if isinstance(value, bytes) and kind is str:
            raise FormatError(f"{_PREFIX}{name} is not valid UTF-8: {value[:40]!r}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FormatError(f"{_PREFIX}{name} must be of type {kind.__name__}, not {type(value).__name__}")
        return value

    def _required(self, name: str, kind: type) -> Any:
        value = self._optional(name, kind, None)
        if value is None:
            raise FormatError(f"{_PREFIX}{name} is missing: the file has no usable tokenizer")
        return value

    def _strings(self, name: str) -> list[str]:
        values = self._required(name, list)
        if set(map(type, values)) - {str}:
            i = next(i for i, value in enumerate(values) if type(value) is not str)
            what = "is not valid UTF-8" if isinstance(values[i], bytes) else "is not a string"
            raise FormatError(f"{_PREFIX}{name}[{i}] {what}: {values[i]!r:.60}")
        return values

    def _numbers(self, name: str, dtypes: tuple[type, ...]) -> list[Any] | None:
        """Array of ``n_vocab`` numbers of one of the types, or None when the key is absent."""
        values = self._metadata.get(_PREFIX + name)
        if values is None:
            return None
        allowed = " or ".join(np.dtype(d).name for d in dtypes)
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype not in dtypes:
            found = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
            raise FormatError(f"{_PREFIX}{name} must be an array of {allowed}, not {found}")
        if len(values) != len(self.tokens):
            raise FormatError(f"{_PREFIX}{name} has {len(values)} elements for {len(self.tokens)} tokens")
        return values.tolist()

    # Parts

    def _choose_pretokenizer(self) -> PreTokenizer | None:
        if self.model in ("llama", "bert"):
            return None
        if self.model == "gemma4":
            return GEMMA4
        if self.pre not in PRETOKENIZERS:
            found = f"{self.pre!r} is unknown" if self.pre else "is missing"
            warnings.warn(
                f"tokenizer.ggml.pre {found}: text is split the default way, and the model may do worse than it should",
                stacklevel=4,
            )
        return PRETOKENIZERS.get(self.pre, PRETOKENIZERS["default"])

    def _read_tokens(self) -> list[str]:
        tokens = self._strings("tokens")
        if not tokens:
            raise FormatError(f"{_PREFIX}tokens is empty")
        return [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]

    def _index_tokens(self) -> dict[str, int]:
        ids = {text: i for i, text in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            i = next(i for i, text in enumerate(self.tokens) if ids[text] != i)
            raise FormatError(f"{_PREFIX}tokens: {self.tokens[i]!r:.60} has the ids {i} and {ids[self.tokens[i]]}")
        return ids

    def _read_types(self) -> list[int]:
        types = self._numbers("token_type", (np.int32, np.uint32))
        if types is None:
            return [int(TokenType.NORMAL)] * len(self.tokens)
        for token, kind in enumerate(types):
            if kind == TokenType.BYTE and not _BYTE_TOKEN.fullmatch(self.tokens[token]):
                raise FormatError(f"{_PREFIX}tokens[{token}] is a byte token, but reads {self.tokens[token]!r:.60}")
        return types

    def _read_scores(self) -> list[float]:
        scores = self._numbers("scores", (np.float32, np.int32))
        if scores is None:
            raise FormatError(f"{_PREFIX}scores is missing: a 'llama' vocabulary merges by score")
        bad = next((i for i, score in enumerate(scores) if score != score), None)
        if bad is not None:
            raise FormatError(f"{_PREFIX}scores[{bad}] is not a number")
        return scores

    def _read_merges(self) -> list[str]:
        """Merges by rank. Of a pair listed twice, the first counts."""
        merges, known = self._strings("merges"), self.ids.keys()
        # Whole sets at once, since a file has hundreds of thousands; then, for the message alone, one by one.
        if (
            set(map(str.count, merges, repeat(" "))) - {1}
            or not set(" ".join(merges).split(" ")) <= known
            or not {merge.replace(" ", "") for merge in merges} <= known
        ):
            for i, merge in enumerate(merges):
                self._check_merge(i, merge)
        return list(dict.fromkeys(merges))

    def _check_merge(self, i: int, merge: str) -> None:
        parts = merge.split(" ")
        if len(parts) != 2 or not all(parts):
            raise FormatError(f"{_PREFIX}merges[{i}] is not two tokens with a space between: {merge!r:.60}")
        for text in (*parts, "".join(parts)):
            if text not in self.ids:
                raise FormatError(f"{_PREFIX}merges[{i}]: {merge!r:.60} needs {text!r:.60}, which is not a token")

    def _special_id(self, name: str, default: int | None = None, *, essential: bool = True) -> int | None:
        """Id under a key. Out of range: an error, or (ids that no text generation needs) a warning and None."""
        token = self._optional(name, int, None)
        if token is None:
            return default if default is not None and default < len(self.tokens) else None
        if 0 <= token < len(self.tokens):
            return int(token)
        text = f"{_PREFIX}{name} is {token}, outside the vocabulary of {len(self.tokens)} tokens"
        if essential:
            raise FormatError(text)
        warnings.warn(f"{text}: ignored", stacklevel=5)
        return None

    def _first_of(self, names: tuple[str, ...]) -> int | None:
        """Id of the first name that is a token, which then counts as a control token."""
        found = next((self.ids[name] for name in names if name in self.ids), None)
        if found is not None:
            self.types[found] = TokenType.CONTROL
        return found

    def _read_special_ids(self) -> None:
        defaults: tuple[int | None, ...] = (None, None, None)
        if self.model == "llama":
            defaults = (1, 2, 0 if self.types[0] == TokenType.UNKNOWN else None)
        elif self.model == "bert":
            defaults = (101, None, 100)
        bos, eos, unk = defaults
        self.bos_id = self._special_id("bos_token_id", bos)
        self.eos_id = self._special_id("eos_token_id", eos)
        self.unk_id = self._special_id("unknown_token_id", unk)
        if self.model == "bert" and self.unk_id is None:
            raise FormatError(f"{_PREFIX}unknown_token_id is missing: a 'bert' vocabulary cannot do without")
        self.pad_id = self._special_id("padding_token_id", essential=False)
        self.eot_id = self._special_id("eot_token_id")
        self.eom_id = self._special_id("eom_token_id")
        if self.eot_id is None:
            self.eot_id = self._first_of(EOT_NAMES)
        if self.eom_id is None:
            self.eom_id = self._first_of(EOM_NAMES)
        self.eog_ids = self._find_eog()

    def _find_eog(self) -> frozenset[int]:
        """Ids that end generation: by key, by name, less the two families where such a name means something else."""
        found = {self.eos_id, self.eot_id, self.eom_id}
        for key, names in FIM_NAMES.items():
            token = self._special_id(key, essential=False)
            token = self._first_of(names) if token is None else token
            if key in FIM_END_KEYS:
                found.add(token)
        found.update(self._first_of((name,)) for name in EOG_NAMES & self.ids.keys())
        for name in SHOWN_NAMES:
            self._set_type(name, TokenType.USER_DEFINED)
        ends = {self.tokens[token] for token in found if token is not None}
        if "<|end|>" in ends and ends & {"<|call|>", "<|calls|>"} and ends & {"<|return|>", "<|flush|>"}:
            ends.discard("<|end|>")
            self._set_type("<|end|>", TokenType.USER_DEFINED)
        if {"<|tool_response>", "</s>"} <= ends:
            ends.discard("</s>")
            self._set_type("</s>", TokenType.NORMAL)
        return frozenset(self.ids[text] for text in ends)

    @property
    def unknown_text(self) -> str:
        """Of the unknown token; "" without one."""
        return "" if self.unk_id is None else self.tokens[self.unk_id]

    def _set_type(self, text: str, kind: TokenType) -> None:
        if text in self.ids:
            self.types[self.ids[text]] = kind

    def _read_flags(self) -> None:
        default = self.model in ("llama", "bert") or (self.pretokenizer is not None and self.pretokenizer.add_bos)
        wanted = self._optional("add_bos_token", bool, None)
        if self.model == "gemma4":
            wanted = None  # early files say false, and mean true
        if wanted and self.bos_id is None:
            raise FormatError(f"{_PREFIX}add_bos_token is true, but {_PREFIX}bos_token_id is missing")
        self.add_bos = self.bos_id is not None and (default if wanted is None else wanted)
        self.add_eos: bool = self._optional("add_eos_token", bool, False)
        if self.add_eos and self.eos_id is None:
            raise FormatError(f"{_PREFIX}add_eos_token is true, but {_PREFIX}eos_token_id is missing")
        self.add_space_prefix: bool = self.model == "llama" and self._optional("add_space_prefix", bool, True)
        self.lowercase: bool = self._optional("normalizer.lowercase", bool, True)
        self.strip_accents: bool = self._optional("normalizer.strip_accents", bool, self.lowercase)
        self.strip_after = self._read_strip_after()

    def _read_strip_after(self) -> frozenset[int]:
        """Phi-3 files do not say so, but its special tokens take the white space after them."""
        name = self._metadata.get("general.name")
        if not isinstance(name, str) or not re.search("phi-?3", name, re.IGNORECASE):
            return frozenset()
        kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return frozenset(token for token, kind in enumerate(self.types) if kind in kinds and token not in kept)
