"""The GGUF reader through ``fasa_py.gguf``: what it reads, and every way a file can be wrong."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_maker as make
import numpy as np
import pytest
from gguf_maker import Maker, Tensor, array, scalar, small_model, string, u32, u64

from fasa_py.errors import FormatError, UnsupportedError
from fasa_py.gguf import GGUF, TensorInfo

HUGE = 2**64 - 1
Open = Callable[[Maker | bytes], GGUF]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Writes a file and opens it."""

    def open_(content: Maker | bytes) -> GGUF:
        path = tmp_path / "model.gguf"
        path.write_bytes(content if isinstance(content, bytes) else content.build())
        return GGUF(path)

    return open_


# What is read


def test_every_metadata_type(opened: Open) -> None:
    file = opened(small_model())
    metadata = file.metadata
    assert metadata["general.architecture"] == "llama"
    integers = [metadata[f"integer.{kind}"] for kind in (make.U8, make.I8, make.U16, make.I16, make.U32, make.I32)]
    assert integers == [200, -100, 60000, -30000, 4_000_000_000, -2_000_000_000]
    assert metadata["integer.u64"] == HUGE
    assert metadata["integer.i64"] == -(2**63)
    assert metadata["float.f32"] == 0.5
    assert metadata["float.f64"] == 0.1
    assert metadata["true"] is True
    assert metadata["false"] is False
    assert metadata["empty"] == ""
    assert metadata["bytes"] == b"\xff\x00"
    assert metadata["strings"] == ["a", "", "\u20ac", b"\xff"]
    assert metadata["no strings"] == []
    for kind, name in ((make.U8, "u1"), (make.I64, "i8"), (make.F32, "f4"), (make.BOOL, "bool"), (make.F64, "f8")):
        values = metadata[f"array.{kind}"]
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.dtype(name)
        assert values.tolist() == [0, 1, 1]
    assert len(metadata) == len(small_model().metadata)
    assert next(iter(metadata)) == "general.architecture"
    assert "missing" not in metadata
    with pytest.raises(KeyError):
        metadata["missing"]


@pytest.mark.parametrize("version", [2, 3])
def test_tensor_table(opened: Open, version: int) -> None:
    maker = small_model()
    maker.version = u32(version)
    file = opened(maker)
    assert file.version == version
    assert file.alignment == 32
    assert file.n_files == 1
    assert file.n_bytes == len(maker.build())
    first = file.tensors[0].offset
    assert file.tensors == [
        TensorInfo("token_embd.weight", "F32", (3, 32), 384, first, 0),
        TensorInfo("half", "F16", (5,), 10, first + 384, 0),
        TensorInfo("quantised", "Q8_0", (2, 1, 2, 32), 136, first + 416, 0),
    ]
    assert bytes(file.tensor_data("half")) == bytes(range(10))
    with pytest.raises(KeyError):
        file.tensor_data("missing")


def test_data_outlives_the_file(opened: Open) -> None:
    with opened(small_model()) as file:
        view = file.tensor_data("token_embd.weight")
        strings = file.metadata["strings"]
    assert view.readonly
    del file
    assert bytes(view) == bytes(range(128)) * 3
    assert strings == ["a", "", "\u20ac", b"\xff"]


def test_a_closed_file_refuses(opened: Open) -> None:
    file = opened(small_model())
    file.close()
    file.close()
    for use in (lambda: file.tensor_data("half"), lambda: file.dequantize("half"), lambda: file.metadata["true"]):
        with pytest.raises(ValueError, match=r"model\.gguf: the file is closed"):
            use()


def test_a_file_without_tensors(opened: Open) -> None:
    file = opened(Maker().add("tokenizer.ggml.tokens", array(make.STRING, ["<s>"])))
    assert file.tensors == []
    assert file.metadata["tokenizer.ggml.tokens"] == ["<s>"]
    assert len(opened(Maker()).metadata) == 0


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(opened: Open, alignment: int) -> None:
    maker = Maker(alignment=alignment).add("general.alignment", scalar(make.U32, alignment))
    maker.add_tensor(Tensor("a", (1,), data=b"aaaa")).add_tensor(Tensor("b", (1,), data=b"bbbb"))
    file = opened(maker)
    assert file.alignment == alignment
    assert [info.offset % alignment for info in file.tensors] == [0, 0]
    assert bytes(file.tensor_data("b")) == b"bbbb"


def test_limits_that_are_allowed(opened: Open) -> None:
    key, name = "k" * 65535, "n" * 64
    file = opened(Maker().add(key, scalar(make.U8, 1)).add_tensor(Tensor(name, (1, 1, 1, 1))))
    assert file.metadata[key] == 1
    assert file.tensors[0].name == name
    assert file.tensors[0].shape == (1, 1, 1, 1)


def test_reads_what_gguf_py_writes(tmp_path: Path) -> None:
    """A file of another writer, with a vocabulary as large as those in use."""
    tokens = [f"token {i} \u00e9" for i in range(128_256)]
    scores = np.linspace(-10, 0, len(tokens)).astype(np.float32)
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores.tolist())
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("w", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF(tmp_path / "model.gguf")
    assert file.metadata["tokenizer.ggml.tokens"] == tokens
    assert np.array_equal(file.metadata["tokenizer.ggml.scores"], scores)
    assert np.array_equal(file.dequantize("w"), weights)


# What is refused: (name, file, exception, texts that the message must have)

BAD_FILES: list[tuple[str, Maker | bytes, type[Exception], list[str]]] = []


def bad(name: str, content: Maker | bytes, *texts: str, error: type[Exception] = FormatError) -> None:
    BAD_FILES.append((name, content, error, list(texts)))


def with_key(key: str | bytes, value: bytes) -> Maker:
    return Maker().add("first", scalar(make.U8, 1)).add(key, value)


def with_tensor(*tensors: Tensor) -> Maker:
    return Maker(tensors=list(tensors))


bad("empty", b"", "magic")
bad("magic", Maker(magic=b"GGJT"), "not a GGUF file", "GGJT")
bad("magic with control characters", Maker(magic=b"\0\n\xffF"), r"\x00\x0a\xff")
bad("version 0", Maker(version=u32(0)), "version 0", error=UnsupportedError)
bad("version 1", Maker(version=u32(1)), "version 1", "2 and 3", error=UnsupportedError)
bad("version 4", Maker(version=u32(4)), "version 4", error=UnsupportedError)
bad("big-endian", Maker(version=struct.pack(">I", 3)), "big-endian", error=UnsupportedError)

bad("metadata count", Maker(n_metadata=HUGE), str(HUGE), "metadata entries")
bad("metadata count one too large", Maker([("a", scalar(make.U8, 1))], n_metadata=2), "metadata entries")
bad("tensor count", Maker(n_tensors=HUGE), str(HUGE), "tensors")
bad("tensor count one too large", Maker(tensors=[Tensor("a", (1,))], n_tensors=2))

bad(
    "65537 metadata entries",
    Maker([(string(f"{i:05d}"), scalar(make.U8, 1)) for i in range(65537)]),
    "65537 metadata entries",
    error=UnsupportedError,
)
bad("key length", with_key(u64(HUGE) + b"k", scalar(make.U8, 1)), "metadata key", str(HUGE))
bad("key empty", with_key("", scalar(make.U8, 1)), "metadata key 1", "empty")
bad("key too long", with_key("k" * 65536, scalar(make.U8, 1)), "metadata key 1", "65535")
bad("key with a zero byte", with_key("a\0b", scalar(make.U8, 1)), r"a\x00b", "zero byte")
bad("key not UTF-8", with_key(string(b"a\xff"), scalar(make.U8, 1)), r"a\xff", "UTF-8")
bad("key with a surrogate", with_key(string(b"\xed\xa0\x80"), scalar(make.U8, 1)), "UTF-8")
bad("key twice", with_key("first", scalar(make.U8, 1)), "first", "twice")
bad("value type 13", with_key("k", u32(13) + u64(0)), "key k", "value type 13")
bad("value type 2^32-1", with_key("k", u32(2**32 - 1) + u64(0)), "key k", "4294967295")
bad("string length", with_key("k", u32(make.STRING) + u64(HUGE)), "string", str(HUGE))
bad("bool 2", with_key("k", scalar(make.BOOL, 2)), "key k", "bool is 2")
bad("bool 255 in an array", with_key("k", array(make.BOOL, [1, 255])), "key k", "bool is 255")
for _kind, _name in ((make.U8, "u8"), (make.F64, "f64"), (make.BOOL, "bool"), (make.STRING, "string")):
    bad(f"array length, {_name}", with_key("k", array(_kind, [], length=HUGE)), str(HUGE))
    bad(f"array length 2^61, {_name}", with_key("k", array(_kind, [], length=2**61)), str(2**61))
bad("array a string short", with_key("k", array(make.STRING, ["a" * 20, "b"], length=3)), "string")
bad("array element type", with_key("k", u32(make.ARRAY) + u32(99) + u64(0)), "key k", "value type 99")
bad("array of arrays", with_key("k", u32(make.ARRAY) + u32(make.ARRAY) + u64(0)), "key k", error=UnsupportedError)

for _alignment in (0, 1, 4, 13, 48, 2**32 - 1):
    bad(
        f"alignment {_alignment}",
        with_key("general.alignment", scalar(make.U32, _alignment)),
        "alignment",
        "power of two",
    )
for _kind in (make.U8, make.I32, make.U64, make.F32, make.STRING):
    _value = "32" if _kind == make.STRING else 32
    bad(f"alignment of type {_kind}", with_key("general.alignment", scalar(_kind, _value)), "alignment", "not a u32")
bad("alignment an array", with_key("general.alignment", array(make.U32, [32])), "alignment", "not a u32")

bad("name length", with_tensor(Tensor("a", (1,), raw_name=u64(HUGE))), "tensor name", str(HUGE))
bad("name empty", with_tensor(Tensor("", (1,))), "tensor 0", "empty")
bad("name too long", with_tensor(Tensor("n" * 65, (1,))), "tensor 0", "64")
bad("name with a zero byte", with_tensor(Tensor("a\0", (1,))), r"a\x00", "zero byte")
bad("name not UTF-8", with_tensor(Tensor(b"\xff", (1,))), r"\xff", "UTF-8")
bad("name twice", with_tensor(Tensor("a", (1,)), Tensor("a", (1,))), "tensor a", "twice")
bad("no dims", with_tensor(Tensor("a", (), data=b"1234")), "tensor a", "0 dims")
bad("five dims", with_tensor(Tensor("a", (1, 1, 1, 1, 1))), "tensor a", "5 dims")
bad("2^32-1 dims", with_tensor(Tensor("a", (1,), n_dims=2**32 - 1)), "tensor a", "4294967295 dims")
for _dims in ((0,), (-1,), (4, -4), (1, 1, 1, 0), (-(2**63), 1)):
    _wrong = next(i for i, dim in enumerate(_dims) if dim < 1)
    bad(f"dims {_dims}", with_tensor(Tensor("a", _dims, data=b"1234")), "tensor a", f"dim {_wrong} is {_dims[_wrong]}")
for _dims in ((2**62, 2), (2**62, 4), (2**32, 2**32), (2**40, 2**40, 1, 1), (2**62,), (2**63 - 1, 2**63 - 1)):
    bad(f"overflow {_dims}", with_tensor(Tensor("a", _dims, data=b"1234")), "tensor a", "overflows")
bad("larger than any file", with_tensor(Tensor("a", (2**60,), data=b"1234")), "tensor a", "outside")
for _type, _name in (
    (16, "IQ2_XXS"),
    (39, "MXFP4"),
    (9, "Q8_1"),
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "31"),
    (2**32 - 1, "4294967295"),
):
    bad(
        f"tensor type {_type}",
        with_tensor(Tensor("blk.0.x", (256,), _type, b"1234")),
        *("tensor blk.0.x", _name, "Supported: F32, F16, BF16, Q4_0"),
        error=UnsupportedError,
    )
for _kind, (_block, _) in make.BLOCKS.items():
    if _block > 1:
        bad(f"row of type {_kind}", with_tensor(Tensor("a", (_block + 1, 32), _kind)), "tensor a", f"block of {_block}")
bad("half a block", with_tensor(Tensor("a", (16, 2), 8, b"\0" * 34)), "tensor a", "block of 32")
bad("offset 2^64-32", with_tensor(Tensor("a", (1,), offset=2**64 - 32)), "tensor a", "outside")
bad("offset after the end", with_tensor(Tensor("a", (8,), offset=32)), "tensor a", "outside")
bad(
    "offset misaligned",
    with_tensor(Tensor("a", (1,), data=b"\0" * 64, offset=4)),
    "tensor a",
    "offset 4",
    "alignment 32",
)
bad("data too short", with_tensor(Tensor("a", (9,), data=b"\0" * 32)), "tensor a", "36 bytes", "outside")
bad("same place", with_tensor(Tensor("a", (8,)), Tensor("b", (8,), offset=0)), "overlaps")
bad("overlap", with_tensor(Tensor("a", (16,)), Tensor("b", (8,), offset=32)), "tensor b", "overlaps tensor a")
bad("overlap in reverse order", with_tensor(Tensor("b", (8,), offset=32), Tensor("a", (16,), offset=0)), "overlaps")


@pytest.mark.parametrize(("content", "error", "texts"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES])
def test_malformed(opened: Open, content: Maker | bytes, error: type[Exception], texts: list[str]) -> None:
    with pytest.raises(error) as info:
        opened(content)
    message = str(info.value)
    for text in ["model.gguf", *texts]:
        assert text in message
    assert message.isprintable(), "one line"
    assert len(message) < 1000


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    whole = small_model().build()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    assert len(GGUF(path).tensors) == 3
    for length in range(len(whole) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FormatError, match=r"model\.gguf"):
            GGUF(path)


def test_memory_stays_in_proportion_to_the_file(tmp_path: Path) -> None:
    """Claims of gigabytes are refused before anything is allocated: a process limited to 64 MiB more than it has."""
    paths = []
    for i, (_, content, _, _) in enumerate(BAD_FILES):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.build())
    program = """
import resource, sys
from fasa_py.errors import FormatError, UnsupportedError
from fasa_py.gguf import GGUF
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
refused = 0
for path in sys.argv[1:]:
    try:
        GGUF(path)
    except (FormatError, UnsupportedError):
        refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True)
    assert done.stdout.split() == [str(len(paths))], done.stderr


@pytest.mark.parametrize("name", ["missing.gguf", ".", "missing/model.gguf"])
def test_paths_that_are_not_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="cannot"):
        GGUF(tmp_path / name)


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(OSError, match="not a regular file"):
        GGUF(tmp_path / "pipe.gguf")


def test_a_null_character_in_the_path() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        GGUF("model.gguf\0.gguf")


# Split sets


def split_set(folder: Path, count: int = 3) -> list[Path]:
    """A set of ``count`` files with one tensor each, as gguf-split writes them."""
    paths = []
    for no in range(count):
        maker = Maker().add("general.architecture", scalar(make.STRING, "llama")) if no == 0 else Maker()
        maker.add("split.no", scalar(make.U16, no)).add("split.count", scalar(make.U16, count))
        maker.add("split.tensors.count", scalar(make.I32, count))
        maker.add_tensor(Tensor(f"w{no}", (2,), data=struct.pack("<2f", no, 0.5)))
        paths.append(folder / f"model-{no + 1:05d}-of-{count:05d}.gguf")
        paths[-1].write_bytes(maker.build())
    return paths


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_opens_the_set(tmp_path: Path, part: int) -> None:
    paths = split_set(tmp_path)
    file = GGUF(paths[part])
    assert file.n_files == 3
    assert file.n_bytes == sum(path.stat().st_size for path in paths)
    assert file.metadata["general.architecture"] == "llama"
    assert [(info.name, info.file) for info in file.tensors] == [("w0", 0), ("w1", 1), ("w2", 2)]
    assert [file.dequantize(f"w{i}").tolist() for i in range(3)] == [[0, 0.5], [1, 0.5], [2, 0.5]]


def test_a_set_of_one(tmp_path: Path) -> None:
    (path,) = split_set(tmp_path, count=1)
    assert GGUF(path.rename(tmp_path / "renamed.gguf")).n_files == 1


def test_split_missing_part(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    paths[1].unlink()
    with pytest.raises(OSError, match=r"model-00002-of-00003\.gguf.*file 2 of the 3"):
        GGUF(paths[0])


def test_split_renamed(tmp_path: Path) -> None:
    path = split_set(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"model\.gguf: one of 3 files"):
        GGUF(path)


def test_split_parts_swapped(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    second = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(second)
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.gguf: split\.no 2"):
        GGUF(paths[0])


def test_split_part_of_another_set(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    paths[1].write_bytes(split_set(other, count=2)[1].read_bytes())
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.gguf: split\.no 1 and split\.count 2"):
        GGUF(paths[0])


def test_split_part_without_keys(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    paths[2].write_bytes(Maker().build())
    with pytest.raises(FormatError, match=r"model-00003-of-00003\.gguf: metadata key split\.no .* is missing"):
        GGUF(paths[0])


def test_split_tensor_twice(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"w1", b"w0"))
    with pytest.raises(FormatError, match="tensor w0 is in two files"):
        GGUF(paths[0])


def test_split_tensor_count(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    head = paths[0].read_bytes()
    at = head.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    paths[0].write_bytes(head[:at] + struct.pack("<i", 4) + head[at + 4 :])
    with pytest.raises(FormatError, match=r"split\.tensors\.count is 4, but the 3 files hold 3"):
        GGUF(paths[2])


@pytest.mark.parametrize("count", [0, 4, 65535])
def test_split_count_unlike_the_name(tmp_path: Path, count: int) -> None:
    path = tmp_path / "model-00001-of-00003.gguf"
    path.write_bytes(Maker().add("split.no", scalar(make.U16, 0)).add("split.count", scalar(make.U16, count)).build())
    if count == 0:
        assert GGUF(path).n_files == 1
    else:
        with pytest.raises(FormatError, match=rf"split\.count {count} do not fit its name"):
            GGUF(path)


def test_split_damaged_part(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    os.truncate(paths[1], paths[1].stat().st_size - 1)
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.gguf: tensor w1"):
        GGUF(paths[0])


# Dequantisation, against gguf-py

TYPES = [gguf.GGMLQuantizationType(kind) for kind in make.BLOCKS]


def same_numbers(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Bit for bit, where any NaN equals any NaN."""
    nan = np.isnan(theirs)
    return bool(
        np.array_equal(np.isnan(ours), nan) and np.array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))
    )


@pytest.mark.parametrize("kind", TYPES, ids=[kind.name for kind in TYPES])
@pytest.mark.parametrize("blocks", ["random", "zeros", "ones"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_dequantize_as_gguf_py(opened: Open, kind: gguf.GGMLQuantizationType, blocks: str) -> None:
    """Any bytes are valid blocks: random ones have subnormal, infinite and NaN scales too."""
    n_in, n_out = 512, 67
    n_bytes = make.size(kind, (n_in, n_out))
    if blocks == "random":
        data = np.random.default_rng(kind).integers(0, 256, n_bytes, np.uint8).tobytes()
    else:
        data = (b"\0" if blocks == "zeros" else b"\xff") * n_bytes
    file = opened(Maker(tensors=[Tensor("w", (n_in, n_out), kind, data)]))
    rows = np.frombuffer(data, np.uint8).reshape(n_out, -1)
    if kind.name in ("F32", "F16"):
        rows = rows.view(np.float32 if kind.name == "F32" else np.float16)
    theirs = gguf.quants.dequantize(rows, kind).astype(np.float32)
    ours = file.dequantize("w")
    assert ours.shape == (n_out, n_in)
    assert same_numbers(ours, theirs)
