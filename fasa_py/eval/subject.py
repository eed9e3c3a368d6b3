"""The model under evaluation: weights, tokenizer and how a question is put to it."""

from __future__ import annotations

import os
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import ChatTemplate, encode_chat
from ..demo import model_path
from ..errors import UnsupportedError
from ..gguf import GGUF
from ..model import Context, ContextSettings, Model, Progress
from ..vocabulary import Vocabulary

_DEMO_NAME = "fasa-demo"


class Subject:
    """A model file opened for evaluation.

    :param path: None: the embedded demo model
    :raises UnsupportedError: the file has no vocabulary that this package implements
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.path = model_path() if path is None else Path(path)
        with ExitStack() as opened:  # a failure frees it at once: whoever keeps the traceback keeps the object
            gguf = opened.enter_context(closing(GGUF(self.path)))
            self.metadata = gguf.metadata
            self.model = opened.enter_context(closing(Model(gguf, device, n_threads, progress)))
            self.info = self.model.info
            self.tokenizer = Vocabulary(gguf, self.info.n_vocab).tokenizer
            try:
                self._template: ChatTemplate | None = ChatTemplate.from_metadata(self.metadata, self.tokenizer)
            except UnsupportedError:
                self._template = None
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Free the weights, once no context uses them any more."""
        self._opened.close()

    @property
    def answers_exactly(self) -> bool:
        """Whether the model was trained to answer the generated tasks word for word: the demo model was."""
        return str(self.metadata.get("general.name", "")).startswith(_DEMO_NAME)

    @property
    def default_n_tip(self) -> int | float | None:
        """Dominant chunks of a head unless told otherwise, as the engine resolves it."""
        with closing(Context(self.model, ContextSettings(n_ctx=32))) as context:
            return context.method.n_tip

    def identity(self) -> dict[str, Any]:
        """What results depend on: the file's name, a fingerprint of the weights, a checksum of the table."""
        table = {key: value for key, value in sorted(self.metadata.items()) if key.startswith("fasa.")}
        checksum = 0
        for key, value in table.items():
            data = np.asarray(value)
            checksum = zlib.crc32(data.tobytes() if data.dtype.kind in "fiub" else repr(value).encode(), checksum)
            checksum = zlib.crc32(key.encode(), checksum)
        return {"file": self.path.name, "fingerprint": f"{self.info.fingerprint:016x}", "table": f"{checksum:08x}"}

    def encode(self, text: str) -> list[int]:
        """Token ids, none of them special."""
        return self.tokenizer.encode(text)

    def ask(self, user: str) -> list[int]:
        """Token ids of a user turn and the opening of the answer; the bare text when there is no chat template."""
        if self._template is not None:
            return encode_chat(self.tokenizer, self._template, [{"role": "user", "content": user}])
        return self.begin(user)

    def begin(self, text: str) -> list[int]:
        """Token ids of a plain text, BOS first where the model expects it."""
        tokenizer = self.tokenizer
        return tokenizer.encode(text, add_bos=tokenizer.add_bos and tokenizer.bos_id is not None)
