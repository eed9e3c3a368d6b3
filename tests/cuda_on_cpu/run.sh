#!/usr/bin/env bash
# The CUDA backend on a machine without a GPU: compiles it for two architectures if there is nvcc, then runs its kernels on
# the CPU, in the tests of its ops and in a few of the Python tests. (With a GPU: bench/gpu.sh.)
#
#   tests/cuda_on_cpu/run.sh [BUILD]    (default build/cuda-on-cpu; needs cmake, ninja, python3 with pytest, cffi and gguf)
#
# CMAKE_ARGS are for both builds. CUDA_ARCHITECTURES (default "75;90") is what nvcc compiles for.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath -m "${1:-build/cuda-on-cpu}")
read -ra cmake_args <<<"${CMAKE_ARGS:-}"

# The oldest that is supported, and 90, which has what older ones lack.
if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
    cmake -S . -B "$build-nvcc" -G Ninja "${cmake_args[@]}" -DFASA_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-75;90}"
    cmake --build "$build-nvcc" --target fasa_cuda
else
    echo "no nvcc: the CUDA backend is not compiled for a GPU"
fi

cmake -S . -B "$build" -G Ninja "${cmake_args[@]}" -DFASA_CUDA=OFF -DFASA_TESTS=ON
cmake --build "$build" --target fasa_cuda_on_cpu_tests fasa_on_cpu

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
processes=()
start() { # LOG COMMAND...
    local log=$logs/$1
    shift
    "$@" >"$log" 2>&1 &
    processes+=($!)
}

# A few Python tests, and beside them as many processes as there are cores left, which share the tests of ops.
export FASA_LIBRARY=$build/tests/cuda_on_cpu/libfasa_on_cpu.so PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
start 0-python python3 -m pytest -c pyproject.toml -p no:cacheprovider -q tests/python -k "$(tr '\n' ' ' <<'END'
test_plan or cuda and (
(test_logits_match_the_reference and (llama-Q4_K-plain or odd-head or heads-of-80 or mixed-types))
or (test_every_method_engages and qwen2 and (fasa or snapkv or quest))
or (test_split_cache and (test_other_methods or test_decoding and llama))
or test_a_method_is_set_after_a_cancel or test_what_a_failed_constructor_took)
END
)"
program=$build/tests/cuda_on_cpu/fasa_cuda_on_cpu_tests
mapfile -t names < <("$program" --list)
n=$(($(nproc) > 1 ? $(nproc) - 1 : 1))
for ((i = 0; i < n && i < ${#names[@]}; i++)); do
    part=()
    for ((j = i; j < ${#names[@]}; j += n)); do part+=("${names[j]}"); done
    start "ops-$i" "$program" "${part[@]}"
done
failed=0
for process in "${processes[@]}"; do wait "$process" || failed=1; done
cat "$logs"/*
exit "$failed"
