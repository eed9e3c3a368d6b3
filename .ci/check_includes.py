"""Check the direction of includes in native/src: base <- gguf <- backend <- kv <- select <- model <- runtime <- capi.

A file sees its own layer and those to the left of it; the backend sees only base. One device's backend does not see
another's, and CUDA headers never leave backend/cuda. tests/cuda_on_cpu, which stands in for CUDA, sees itself, base and
backend/cuda; its tests see the headers of tests/native too.

    python .ci/check_includes.py
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LAYERS = ["base", "gguf", "backend", "kv", "select", "model", "runtime", "capi"]
PUBLIC_HEADER = "fasa.h"
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CUDA_HEADER = re.compile(
    r"(cuda|cublas|cudnn|curand|nvrtc|nvtx|nvml|cooperative_groups|cub/|cute/|cutlass|thrust/|mma\.h)"
)
SOURCES = {".h", ".cpp", ".cu", ".cuh", ".inc"}


def layer_of(path: PurePosixPath) -> str:
    """The first folder; ``capi.cpp`` may also lie at the top."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def visible(layer: str) -> set[str]:
    if layer == "backend":
        return {"base", "backend"}
    return set(LAYERS[: LAYERS.index(layer) + 1])


def device_of(path: PurePosixPath) -> str | None:
    """``cpu`` or ``cuda`` for files of one device's backend."""
    return path.parts[1] if path.parts[0] == "backend" and len(path.parts) > 2 else None


def includes(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line, ``<`` or ``"`` and name of every include."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match is not None:
            yield number, match[1], match[2]


def resolve(root: Path, file: PurePosixPath, name: str) -> PurePosixPath | None:
    """A quoted include as a path from the root, looked up as the compiler does: beside the file, then from the root."""
    for candidate in (file.parent / name, PurePosixPath(name)):
        target = (root / candidate).resolve()
        if target.is_file() and target.is_relative_to(root):
            return PurePosixPath(target.relative_to(root).as_posix())
    return None


def faults(root: Path, file: PurePosixPath) -> Iterator[str]:
    layer = layer_of(file)
    if layer not in LAYERS:
        yield f"{file}: lies in no layer ({', '.join(LAYERS)})"
        return
    for number, kind, name in includes(root / file):
        place = f"{file}:{number}"
        if kind == "<":
            if CUDA_HEADER.match(name) and device_of(file) != "cuda":
                yield f"{place}: the CUDA header {name} outside backend/cuda"
            continue
        if name == PUBLIC_HEADER:
            continue
        target = resolve(root, file, name)
        if target is None:
            yield f"{place}: {name} is neither beside the file nor in {root.name}"
            continue
        if layer_of(target) not in visible(layer):
            yield f"{place}: {layer} must not include {target}"
        elif device_of(file) and device_of(target) not in (None, device_of(file)):
            yield f"{place}: {target} belongs to another device's backend"


def faults_on_cpu(stand_in: Path, root: Path, file: PurePosixPath) -> Iterator[str]:
    """Of a file of tests/cuda_on_cpu, looked up there and then in native/src, as its targets are compiled."""
    test_headers = [stand_in.parent / "native", stand_in.parent / "native" / "cuda"] if file.parts[0] == "tests" else []
    for number, kind, name in includes(stand_in / file):
        if kind == "<" or resolve(stand_in, file, name) or any((folder / name).is_file() for folder in test_headers):
            continue
        target = resolve(root, PurePosixPath(file.name), name)
        if target is None or not (layer_of(target) == "base" or device_of(target) == "cuda"):
            yield f"{stand_in.name}/{file}:{number}: {name} is neither here nor in base or backend/cuda"


def sources(root: Path) -> list[PurePosixPath]:
    files = (p for p in root.rglob("*") if p.suffix in SOURCES)
    return sorted(PurePosixPath(p.relative_to(root).as_posix()) for p in files)


def main() -> int:
    repository = Path(__file__).parents[1]
    root = (repository / "native" / "src").resolve()
    stand_in = (repository / "tests" / "cuda_on_cpu").resolve()
    files, others = sources(root), sources(stand_in)
    found = [fault for file in files for fault in faults(root, file)]
    found += [fault for file in others for fault in faults_on_cpu(stand_in, root, file)]
    print("\n".join(found) if found else f"{len(files) + len(others)} files include in the right direction")
    return 1 if found or not files or not others else 0


if __name__ == "__main__":
    sys.exit(main())
