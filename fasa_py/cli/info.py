"""show what is in a GGUF file, without loading its weights"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from ..calibration import CalibrationTable, read_table
from ..gguf import GGUF, TensorInfo
from ..llama import default_model
from ..method import Method
from ..model import supported
from ..planning import checked_settings, describe
from .common import (
    METHOD_ARGUMENTS,
    add_device_arguments,
    add_method_arguments,
    add_model_file_argument,
    console,
    method_options,
    size,
    table,
)

_CONTEXTS = (2048, 8192, 32768, 131072)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_file_argument(parser)
    parser.add_argument("file", nargs="?", help="the same as --model")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--metadata", action="store_true", help="list every metadata key")
    group = parser.add_argument_group("plan", "Memory that the model would take; shown when any of these is given.")
    group.add_argument("-c", "--ctx", "--n-ctx", type=int, metavar="N", help="context in tokens")
    group.add_argument("--batch", type=int, default=512, metavar="N", help="prompt tokens processed at once")
    group.add_argument("--seq", type=int, default=1, metavar="N", help="conversations kept at the same time")
    add_device_arguments(group)
    add_method_arguments(parser)
    parser.set_defaults(asked_for_plan=lambda args: _differs(parser, args))


def _differs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> bool:
    """Whether any argument that a plan depends on was given."""
    names = ("ctx", "batch", "seq", "device", "vram", *METHOD_ARGUMENTS)
    return any(getattr(args, name) != parser.get_default(name) for name in names)


def run(args: argparse.Namespace) -> int:
    if args.file and args.model:
        raise ValueError("give the file once")
    with GGUF(args.file or args.model or default_model()) as gguf:
        out = console()
        out.print(table(str(gguf.path), _summary(gguf)))
        out.print(table("Tensor types", _types(gguf.tensors), ("type", "tensors", "weights", "size")))
        kv_bytes = kv_bytes_per_token(gguf.metadata)
        if kv_bytes is not None:
            out.print(table("KV cache (f16)", _kv_rows(gguf.metadata, kv_bytes), ("context", "size")))
        if "fasa.version" in gguf.metadata:
            out.print(table("FASA table", _calibration(read_table(gguf))))
        if args.metadata:
            out.print(table("Metadata", ((k, _value(v)) for k, v in gguf.metadata.items()), ("key", "value")))
        if args.tensors:
            rows = ((t.name, t.dtype, _shape(t), t.n_bytes, t.offset, t.file) for t in gguf.tensors)
            out.print(table("Tensors", rows, ("name", "type", "shape", "bytes", "offset", "file")))
    if args.asked_for_plan(args):
        _print_plan(out, gguf.path, args)
    return 0


def _print_plan(out: Console, path: str | os.PathLike[str], args: argparse.Namespace) -> None:
    """Memory by what takes it and where, what there is, and what would fit."""
    options = method_options(args)
    kv, k_dom, kv_cache_rows = options.pop("kv"), options.pop("k_dom"), options.pop("kv_cache_rows", None)
    settings = checked_settings(
        args.ctx,
        args.batch,
        args.seq,
        Method.of(options.pop("method", "auto"), **options),
        kv,
        k_dom,
        kv_cache_rows,
    )
    info, plan = describe(path, settings, device=args.device, vram=args.vram)
    rows = [
        ("weights", plan.weights_device_bytes, plan.weights_host_bytes),
        ("KV cache", plan.kv_device_bytes, plan.kv_host_bytes),
        ("scratch", plan.scratch_device_bytes, plan.scratch_host_bytes),
        ("CUDA itself, at most", plan.system_device_bytes, 0),
        ("in all", plan.device_bytes, plan.host_bytes),
        ("available", plan.device_available, plan.host_available),
        ("missing", plan.device_missing, plan.host_missing),
    ]
    placement = ", KV cache split between device and host" if plan.kv == "split" else ""
    cells = ((name, device, size(device), host, size(host)) for name, device, host in rows)
    out.print(table(f"Plan for {plan.n_ctx:,} tokens", cells, ("bytes of", "device", "", "host", "")))
    largest = f"largest context that fits: {plan.n_ctx_max:,} tokens" if plan.n_ctx_max else "no context fits"
    trained = f" (trained: {info.n_ctx_train:,})" if plan.n_ctx_max > info.n_ctx_train else ""
    out.print(
        Text(f"{'it fits' if plan.fits else 'it does not fit'}; {largest}{trained}\ndevice: {info.device}{placement}")
    )


def kv_bytes_per_token(metadata: Mapping[str, Any]) -> int | None:
    """Bytes that a token's keys and values take over all layers, as f16; None when the metadata does not say."""
    arch = _text(metadata, "general.architecture")

    def count(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LookupError(key)
        return value

    try:
        n_layer, n_head = count("block_count"), count("attention.head_count")
        head_dim = count("embedding_length") // n_head
        per_layer = metadata.get(f"{arch}.attention.head_count_kv")
        heads = int(per_layer.sum()) if isinstance(per_layer, np.ndarray) else (
            n_layer * count("attention.head_count_kv", n_head)
        )  # fmt: skip
        return 2 * heads * (count("attention.key_length", head_dim) + count("attention.value_length", head_dim))
    except LookupError:
        return None


def _kv_rows(metadata: Mapping[str, Any], kv_bytes: int) -> list[tuple[object, ...]]:
    trained = metadata.get(f"{_text(metadata, 'general.architecture')}.context_length")
    contexts = {*_CONTEXTS, trained} if isinstance(trained, int) and trained > 0 else set(_CONTEXTS)
    return [(n, size(n * kv_bytes) + (" (trained)" if n == trained else "")) for n in sorted(contexts)]


def _summary(gguf: GGUF) -> list[tuple[object, ...]]:
    metadata = gguf.metadata
    arch = _text(metadata, "general.architecture") or "(none)"
    archs, _ = supported()
    known = arch in archs.split(", ")
    rows: list[tuple[object, ...]] = [
        ("name", _text(metadata, "general.name")),
        ("architecture", arch if known else f"{arch} (not supported; supported: {archs})"),
        ("file", f"GGUF version {gguf.version}, {gguf.n_files} file(s), {size(gguf.n_bytes)}"),
        ("parameters", sum(math.prod(tensor.shape) for tensor in gguf.tensors)),
    ]
    for key in (
        "context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.head_count_kv", "rope.freq_base", "rope.scaling.type",
    ):  # fmt: skip
        if f"{arch}.{key}" in metadata:
            rows.append((key.replace("_", " ").replace(".", " "), _value(metadata[f"{arch}.{key}"])))
    tokens = metadata.get("tokenizer.ggml.tokens")
    n_tokens = f", {len(tokens)} tokens" if isinstance(tokens, (list, np.ndarray)) else ""
    kind = [_text(metadata, "tokenizer.ggml.model") or "none", _text(metadata, "tokenizer.ggml.pre")]
    rows.append(("vocabulary", " ".join(kind).strip() + n_tokens))
    rows.append(("chat template", "yes" if "tokenizer.chat_template" in metadata else "no"))
    return rows


def _calibration(found: CalibrationTable) -> list[tuple[object, ...]]:
    """What a calibration table holds and how it was made."""
    n_layer, n_head, n_chunk = found.ca.shape
    by = [name for name, order in (("KV head", found.order), ("query head", found.order_head)) if order is not None]
    return [
        ("chunks", f"{n_layer} layers, {n_head} heads, {n_chunk} chunks of a head, {found.chunk_layout}"),
        ("criterion", found.criterion),
        ("sets by mass", f"by {' and '.join(by)}" if by else "none"),
        ("dominant chunks", f"{found.n_tip} recommended" if found.n_tip else f"{max(1, n_chunk // 4)} (a quarter)"),
        (
            "calibrated with",
            f"{found.source}: {found.n_steps} decode steps of {found.n_samples} sample(s), K {found.k}",
        ),
        ("CA > 0.4", f"{found.share_above(0.4):.2%} of all chunks"),
        ("CA < 0.15", f"{1 - found.share_above(0.15, inclusive=True):.1%} of all chunks"),
        ("weights (SHA-256)", found.model_sha256),
    ]


def _types(tensors: list[TensorInfo]) -> list[tuple[object, ...]]:
    """Tensors, weights and bytes of each type, the one with most bytes first."""
    n_tensors, n_weights, n_bytes = Counter[str](), Counter[str](), Counter[str]()
    for tensor in tensors:
        n_tensors[tensor.dtype] += 1
        n_weights[tensor.dtype] += math.prod(tensor.shape)
        n_bytes[tensor.dtype] += tensor.n_bytes
    return [(name, n_tensors[name], n_weights[name], size(total)) for name, total in n_bytes.most_common()]


def _text(metadata: Mapping[str, Any], key: str) -> str:
    """A metadata text; empty when it is missing or no text."""
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _shape(tensor: TensorInfo) -> str:
    return " x ".join(str(n) for n in tensor.shape)


def _value(value: Any) -> object:
    """A metadata value in a table: arrays by their length and first elements."""
    if isinstance(value, (list, np.ndarray)):
        first = ", ".join(str(v) for v in value[:4])
        return f"[{len(value)}] {first}{', …' if len(value) > 4 else ''}"
    return value if isinstance(value, (int, str)) else str(value)
