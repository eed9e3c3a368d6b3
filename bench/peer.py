"""Build the engine we compare with, llama-cpp-python, from source into its own virtual environment.

    python bench/peer.py [--venv build/peer-venv] [--jobs 2] [--source llama-cpp-python]

The instruction sets are named one by one instead of ``GGML_NATIVE``, so that both engines use the same ones and the
figures can be repeated. AMX is left out on purpose: several virtual machines announce it and then fault on using it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_VENV = REPOSITORY / "build" / "peer-venv"

# GGML option -> the flag of /proc/cpuinfo that it needs.
INSTRUCTION_SETS = {
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX512": "avx512bw",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
}


def cpu_flags() -> set[str]:
    """Instruction sets that the processor announces (Linux on x86)."""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    raise SystemExit("/proc/cpuinfo names no flags: set CMAKE_ARGS yourself and pip install llama-cpp-python")


def cmake_args() -> str:
    flags = cpu_flags()
    options = {name: "ON" if flag in flags else "OFF" for name, flag in INSTRUCTION_SETS.items()}
    options |= {"GGML_NATIVE": "OFF", "GGML_AMX_INT8": "OFF", "LLAVA_BUILD": "OFF"}
    return " ".join(f"-D{name}={value}" for name, value in options.items())


def build(directory: Path, source: str, jobs: int) -> Path:
    """Create the environment, build ``source`` (a requirement or an sdist) into it; returns its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    environment = {**os.environ, "CMAKE_ARGS": cmake_args(), "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
    print(f"CMAKE_ARGS={environment['CMAKE_ARGS']}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--no-binary", "llama-cpp-python", source]
    subprocess.run(pip, env=environment, check=True)
    report = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"
    subprocess.run([str(python), "-c", report], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--source", default="llama-cpp-python", help="requirement, or the path of an sdist")
    arguments = parser.parse_args()
    build(arguments.venv, arguments.source, arguments.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
