"""show what was built, which CPU and GPU are used, and why"""

from __future__ import annotations

import argparse
import platform

from .. import __version__
from .._native import library_path
from ..errors import UnsupportedError
from ..llama import default_model
from ..model import build_info, supported
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
        ("device used", "cuda" if build.cuda else "cpu, because CUDA was not built"),
        ("architectures", archs),
        ("tensor types", dtypes),
        ("demo model", default_model()),
    ]
    console().print(table("fasa doctor", rows))
    if build.cpu_isa == "none":
        raise UnsupportedError(build.cpu_isa_reason)
    return 0
