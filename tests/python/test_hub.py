"""Choosing and fetching model files of the Hugging Face hub, without the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasa_py import Llama, hub

FILES = [
    "README.md", "a-q4_k_m.gguf", "a-q8_0.gguf", "big/b-f16-00001-of-00003.gguf", "big/b-f16-00002-of-00003.gguf",
    "big/b-f16-00003-of-00003.gguf", "c-00001-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("*q4_k_m.gguf", ["a-q4_k_m.gguf"]),
        ("a-q8_0.gguf", ["a-q8_0.gguf"]),
        ("*f16*", FILES[3:6]),
        ("b-f16-00002-of-00003.gguf", FILES[3:6]),
        ("big/*", FILES[3:6]),
    ],
)
def test_a_pattern_that_names_one_model(pattern: str, chosen: list[str]) -> None:
    assert hub.choose(FILES, pattern, "x/y") == chosen


def test_a_pattern_that_names_none_or_several() -> None:
    with pytest.raises(FileNotFoundError, match=r"'\*q5\*' in x/y.*a-q4_k_m\.gguf"):
        hub.choose(FILES, "*q5*", "x/y")
    with pytest.raises(FileNotFoundError, match="no GGUF file at all"):
        hub.choose(["README.md"], "*", "x/y")
    with pytest.raises(ValueError, match=r"2 models.*a-q4_k_m\.gguf, a-q8_0\.gguf"):
        hub.choose(FILES, "a-*", "x/y")
    with pytest.raises(FileNotFoundError, match=r"lacks parts.*c-00002-of-00002"):
        hub.choose(FILES, "c-*", "x/y")


def test_from_pretrained_fetches_the_parts(monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    fetched: list[tuple[str, str, Any]] = []

    def fetch(repo_id: str, name: str, **options: Any) -> str:
        fetched.append((repo_id, name, options["revision"]))
        return str(tiny_path)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda _self, _repo_id, revision: FILES)
    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    with Llama.from_pretrained("x/y", "*f16*", revision="main", n_ctx=100) as llm:
        assert llm.n_ctx == 100
    assert fetched == [("x/y", name, "main") for name in FILES[3:6]]
    assert hub.download("x/y", "*q8_0*") == tiny_path
    with pytest.raises(TypeError, match="filename_glob"):
        Llama.from_pretrained("x/y")


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_connection(*_args: Any, **_options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "list_repo_files", no_connection)
    with pytest.raises(OSError, match=r"cannot reach.*no route.*not in the cache"):
        hub.download("x/y", "*", cache_dir=tmp_path)
    snapshot = tmp_path / "models--x--y" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--x--y" / "refs").mkdir()
    (tmp_path / "models--x--y" / "refs" / "main").write_text("0" * 40)
    (snapshot / "m-q8_0.gguf").write_bytes(b"GGUF")
    assert hub.download("x/y", "*q8*", cache_dir=tmp_path) == snapshot / "m-q8_0.gguf"
    with pytest.raises(FileNotFoundError, match="the cache of x/y"):
        hub.download("x/y", "*q4*", cache_dir=tmp_path)
