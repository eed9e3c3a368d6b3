"""show what was built, which CPU and GPU are used, and why"""

from __future__ import annotations

import argparse
import platform

from .. import __version__
from .._native import library_path
from ..errors import UnsupportedError
from ..llama import default_model
from ..model import build_info, gpus, supported
from .common import console, size, table


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(_args: argparse.Namespace) -> int:
    build = build_info()
    archs, dtypes = supported()
    rows: list[tuple[object, ...]] = [
        ("fasa_py", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"),
        ("engine", f"{build.version}, {library_path()}"),
        ("compiler", build.compiler),
        ("CPU", f"{build.cpu_name}, {build.n_cores} usable core(s)"),
        ("instruction set", f"{build.cpu_isa} ({build.cpu_isa_reason}; built: {build.cpu_isa_built})"),
        ("memory available", size(build.memory_available)),
        ("CUDA", f"{'built' if build.cuda else 'not built'}: {build.cuda_reason}"),
        *_gpus(),
        ("architectures", archs),
        ("tensor types", dtypes),
        ("demo model", default_model()),
    ]
    console().print(table("fasa doctor", rows))
    if build.cpu_isa == "none":
        raise UnsupportedError(build.cpu_isa_reason)
    return 0


def _gpus() -> list[tuple[object, ...]]:
    """A row for every GPU, and what device="auto" makes of them."""
    found, reason = gpus()
    rows: list[tuple[object, ...]] = []
    for i, gpu in enumerate(found):
        facts = [
            gpu.name,
            size(gpu.memory_bytes),
            f"compute capability {gpu.capability_major}.{gpu.capability_minor}",
            f"{gpu.n_multiprocessors} multiprocessors",
            f"driver for CUDA {_version(gpu.driver_version)}, built with {_version(gpu.runtime_version)}",
        ]
        if not gpu.supported:
            facts.append("too old: 7.5 or newer is needed")
        rows.append((f"cuda:{i}", ", ".join(facts)))
    usable = (f"cuda:{i}" for i, gpu in enumerate(found) if gpu.supported)
    return [*rows, ("device auto", next(usable, f"cpu: {reason or 'no GPU is new enough'}"))]


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
