"""Check the direction of includes in native/src: base <- gguf <- backend <- kv <- select <- model <- runtime <- capi.

A file sees its own layer and those to the left of it; the backend sees only base. One device's backend does not see
another's, and CUDA headers never leave backend/cuda.

    python .ci/check_includes.py [native/src]
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
    for number, line in enumerate((root / file).read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match is None:
            continue
        place, kind, name = f"{file}:{number}", *match.groups()
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


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "native" / "src").resolve()
    files = sorted(p for p in root.rglob("*") if p.suffix in SOURCES)
    found = [fault for p in files for fault in faults(root, PurePosixPath(p.relative_to(root).as_posix()))]
    print("\n".join(found) if found else f"{len(files)} files include in the right direction")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
