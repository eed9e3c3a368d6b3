"""The ``fasa`` command: what it prints where, exit codes, pipes, Ctrl-C, the interactive chat."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModel, write

import fasa_py
from fasa_py import Llama, cli
from fasa_py.cli.info import kv_bytes_per_token

FASA = [sys.executable, "-m", "fasa_py"]


def fasa(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it."""
    return subprocess.run([*FASA, *arguments], capture_output=True, text=True, timeout=120, check=False, **options)


def test_generate_writes_the_text_to_stdout(capsys: pytest.CaptureFixture[str], demo_llm: Llama) -> None:
    expected = demo_llm.generate("The sea", max_tokens=12, seed=4, top_k=10).text
    assert cli.main(["generate", "The sea", "-n", "12", "--seed", "4", "--top-k", "10"]) == 0
    assert capsys.readouterr() == (expected + "\n", "")
    assert cli.main(["generate", "The sea", "-n", "12", "--seed", "4", "--top-k", "10", "-v"]) == 0
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert re.search(r"24\.1 M parameters", err) and re.search(r"answer: 12 tokens at [\d.]+ tok/s; seed 4", err)


def test_generate_reads_files_and_stdin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("The sea", encoding="utf-8")
    options = ["-n", "5", "--temp", "0"]
    assert cli.main(["generate", "-f", str(tmp_path / "prompt.txt"), *options]) == 0
    from_file = capsys.readouterr().out
    assert len(from_file) > 5
    assert fasa("generate", *options, input="The sea").stdout == from_file
    assert fasa("generate", "-", *options, input="The sea").stdout == from_file


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for arguments, data in ((["-f", str(tmp_path / "latin.txt")], b""), ([], b"caf\xe9")):
        result = subprocess.run([*FASA, "generate", *arguments], input=data, capture_output=True, check=False)
        assert result.returncode == 1
        where = arguments[-1] if arguments else "stdin"
        assert result.stderr.decode() == f"fasa: {where} is not UTF-8 text: byte 3 is 0xe9\n"


def test_only_the_packages_own_log_is_shown() -> None:
    """A dependency's warnings, and what the hub's library tells of its attempts, are not."""
    script = (
        "import logging\nfrom fasa_py import cli\n"
        "cli._log_to_stderr(False)\n"
        "from huggingface_hub.utils import _http\n"
        "_http.logger.warning('Retrying in 1s')\nlogging.getLogger('fasa_py').warning('ours')\n"
        "logging.getLogger('fasa_py').info('detail')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("", "fasa: ours\n")


def test_generate_asks_as_a_user(capsys: pytest.CaptureFixture[str], demo_llm: Llama) -> None:
    question = "The door code is 48213. The ship sailed.\n\nWhat is the door code?"
    expected = demo_llm.chat([{"role": "user", "content": question}], temperature=0, max_tokens=30).text
    assert cli.main(["generate", "--chat", question, "--temp", "0", "-n", "30"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    stop = expected[5:9]
    assert cli.main(["generate", "--chat", question, "--temp", "0", "-n", "30", "--stop", "zzz", "--stop", stop]) == 0
    assert capsys.readouterr().out == expected[: expected.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "-m", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["generate", "x", "-f", "/nowhere/prompt.txt"], "not both"),
        (["generate", "-f", "/nowhere/prompt.txt"], "/nowhere/prompt.txt"),
        (["generate", "x", "--top-p", "nan"], "top_p must be between 0 and 1"),
        (["generate", "x", "--device", "tpu"], "device must be"),
        (["generate", "x", "--ctx", "-5"], "n_ctx must be"),
        (["generate", "x", "--hf", "a/b", "-m", "c"], "not both"),
        (["generate", "long " * 100, "--ctx", "20"], "n_ctx = 20"),
        (["generate", "--chat", "x", "--chat-template", "nosuch"], "nosuch"),
        (["generate", "x", "--ctx", "200000000"], "would fit"),
        (["perplexity", "x", "--ctx", "2"], "two tokens"),
        (["perplexity", ""], "two tokens"),
        (["info", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["info", __file__], "GGUF"),
    ],
)
def test_errors_are_one_line_and_code_1(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fasa: ") and err.count("\n") == 1
    assert message in err
    with pytest.raises(Exception, match=re.escape(message)):
        cli.main([*arguments, "--debug"])


@pytest.mark.parametrize(
    "arguments", [[], ["nosuch"], ["generate", "--top-k", "x"], ["chat", "--nosuch"], ["doctor", "x"]]
)
def test_usage_errors_are_one_line_and_code_1(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--help" in err


def test_version_and_help() -> None:
    assert fasa("--version").stdout == f"fasa {fasa_py.__version__}\n"
    text = fasa("--help").stdout
    for command in ("generate", "chat", "info", "perplexity", "doctor", "demo"):
        assert command in text
        assert fasa(command, "--help").returncode == 0


# -- info, doctor, perplexity --------------------------------------------------------------------------------------


def test_info_of_the_demo_model(capsys: pytest.CaptureFixture[str], demo_llm: Llama) -> None:
    assert cli.main(["info"]) == 0
    brief = capsys.readouterr().out
    for fact in ("llama", "24,125,952", "Q4_K", "Q6_K", "16,384", "128.0 MiB (trained)", "4096 tokens"):
        assert fact in brief
    assert "blk.0.attn_q.weight" not in brief
    assert cli.main(["info", str(demo_llm.path), "--tensors", "--metadata"]) == 0
    full = capsys.readouterr().out
    assert re.search(r"blk\.0\.attn_k\.weight +│ Q4_K +│ 256 x 512 ", full)
    assert "llama.rope.freq_base" in full


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_info_of_any_supported_file(arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.gguf", TinyModel(arch=arch, dtype="Q8_0", head_dim=32))
    assert cli.main(["info", str(path), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert arch in out and "Q8_0" in out and "output_norm.weight" in out
    with Llama(path) as llm:
        assert kv_bytes_per_token(llm.metadata) == llm.plan.kv_bytes // llm.n_ctx


def test_info_of_odd_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An architecture that is not implemented, no hyper-parameters, text that would drive a terminal."""
    meta = {"general.name": "evil\x1b[2J[red]name" + "x" * 1000, "evil.block_count": "a text"}
    path = write(tmp_path / "odd.gguf", TinyModel(), meta=meta, arch="evil")
    assert cli.main(["info", str(path), "--metadata"]) == 0
    out = capsys.readouterr().out
    assert "not supported; supported: llama" in out
    assert "\x1b" not in out and r"evil\x1b[2J[red]name" in out
    assert "KV cache" not in out


@pytest.mark.parametrize(
    ("head_count_kv", "expected"),
    [(2, 4 * 2 * 2 * (10 + 10)), (None, 4 * 8 * 2 * (10 + 10)), ("text", None), (0, None), (True, None)],
)
def test_kv_bytes(head_count_kv: Any, expected: int | None) -> None:
    metadata = {"general.architecture": "a", "a.block_count": 4, "a.embedding_length": 80, "a.attention.head_count": 8}
    if head_count_kv is not None:
        metadata["a.attention.head_count_kv"] = head_count_kv
    assert kv_bytes_per_token(metadata) == expected


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in ("instruction set", "CUDA", "usable core", "llama, qwen2, qwen3", "Q4_K", fasa_py.__version__):
        assert fact in out
    forced = fasa("doctor", env={**os.environ, "FASA_CPU": "scalar"}).stdout
    assert "scalar (FASA_CPU=scalar" in forced


def test_doctor_of_a_processor_that_cannot_be_used() -> None:
    done = fasa("doctor", env={**os.environ, "FASA_CPU": "mmx"})
    assert done.returncode == 1
    assert "usable core" in done.stdout
    assert done.stderr.startswith("fasa: FASA_CPU=mmx") and done.stderr.count("\n") == 1


def test_perplexity(capsys: pytest.CaptureFixture[str], demo_llm: Llama) -> None:
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    assert cli.main(["perplexity", text]) == 0
    whole = capsys.readouterr().out
    expected = demo_llm.perplexity(demo_llm.tokenize(text))
    match = re.fullmatch(r"perplexity ([\d.]+) \((\d+) tokens in 1 window of 16383\)\n", whole)
    assert match is not None
    assert float(match[1]) == pytest.approx(expected, rel=1e-3)
    n_tokens = len(demo_llm.tokenize(text, add_bos=False))
    assert int(match[2]) == n_tokens
    assert cli.main(["perplexity", text, "--ctx", "11"]) == 0
    assert f"({n_tokens} tokens in {-(-n_tokens // 10)} windows of 10)" in capsys.readouterr().out


# -- chat ----------------------------------------------------------------------------------------------------------


def test_chat_reads_lines_from_a_pipe(demo_llm: Llama) -> None:
    first, second = "The door code is 48213. What is the door code?", "And again?"
    answer = demo_llm.chat([{"role": "user", "content": first}], temperature=0, max_tokens=20).text
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": second})
    follow_up = demo_llm.chat(messages, temperature=0, max_tokens=20).text
    alone = demo_llm.chat(messages[2:], temperature=0, max_tokens=20).text
    lines = [first, second, "", "/reset", second, "/exit", "not read"]
    result = fasa("chat", "--temp", "0", "-n", "20", input="\n".join(lines))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{answer}\n{follow_up}\n{alone}\n"


def test_chat_goes_on_when_the_context_is_full() -> None:
    result = fasa("chat", "--temp", "0", "-n", "4", "--ctx", "30", input="long " * 50 + "\nHi\n")
    assert result.returncode == 0
    assert "n_ctx = 30" in result.stderr and "/reset" in result.stderr
    assert len(result.stdout.strip()) > 0


def test_chat_with_a_system_message(demo_llm: Llama) -> None:
    messages = [
        {"role": "system", "content": "The door code is 73911."},
        {"role": "user", "content": "What is the code?"},
    ]
    expected = demo_llm.chat(messages, temperature=0, max_tokens=15).text
    result = fasa("chat", "--temp", "0", "-n", "15", "--system", messages[0]["content"], input=messages[1]["content"])
    assert result.stdout == expected + "\n"


def endless_model(folder: Path) -> Path:
    """Random weights: text without an end in sight, slow enough to be interrupted."""
    model = TinyModel(n_vocab=270, vocabulary=True, n_ctx=16384, n_layer=12, n_embd=256, n_ff=512, head_dim=64)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return write(folder / "endless.gguf", model, meta={"tokenizer.chat_template": template})


@pytest.mark.skipif(sys.platform == "win32", reason="uses a pseudo-terminal")
def test_chat_on_a_terminal(tmp_path: Path) -> None:
    """Ctrl-C stops an answer; twice leaves with 130."""
    import pty

    path = endless_model(tmp_path)
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*FASA, "chat", "-m", str(path), "-t", "1"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(screen, 4096).decode("utf-8", "replace")
        shown = shown.split(text, 1)[1]

    try:
        wait_for("/reset forgets")
        wait_for("> ")
        os.write(screen, b"hello\n")
        wait_for("hello")
        time.sleep(1)  # it answers, without an end in sight
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None  # one Ctrl-C stops the answer only
        os.write(screen, b"hello again\n")
        wait_for("hello again")
        for _ in range(40):  # more of them leave; two that come at once count as one
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            if process.poll() is not None:
                break
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(screen)


# -- pipes and signals ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and signals")
def test_a_broken_pipe_is_silent(tmp_path: Path) -> None:
    command = [*FASA, "generate", "-m", str(endless_model(tmp_path)), "-t", "1", "The sea", "-n", "-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert len(process.stdout.read(5)) == 5
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and signals")
def test_ctrl_c_is_code_130(tmp_path: Path) -> None:
    command = [*FASA, "generate", "-m", str(endless_model(tmp_path)), "-t", "1", "The sea", "-n", "-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert len(process.stdout.read(5)) == 5
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"\n"
