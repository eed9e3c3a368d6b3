#!/bin/sh
# run.sh SECONDS: fuzz the GGUF reader under ASan and UBSan. Fails on any crash, hang or oversized allocation; the input
# that caused it is left in build/fuzz/found. CXX: a clang++ with libFuzzer. PYTHON: any python3.
set -eu
seconds=${1:?usage: run.sh SECONDS}
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/fuzz
CXX=${CXX:-clang++}

mkdir -p "$build/corpus" "$build/found"
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' > "$build/probe.cpp"
if ! "$CXX" -fsanitize=fuzzer,address,undefined "$build/probe.cpp" -o "$build/probe" 2> "$build/probe.log"; then
    echo "run.sh: $CXX cannot link libFuzzer (Debian: apt-get install clang libclang-rt-14-dev; or set CXX):" >&2
    tail -n 3 "$build/probe.log" >&2
    exit 2
fi

cmake -S "$root" -B "$build" -DCMAKE_CXX_COMPILER="$CXX" -DFASA_FUZZ=ON -DFASA_CUDA=OFF > "$build/cmake.log"
cmake --build "$build" --target fuzz_gguf
"${PYTHON:-python3}" "$root/tests/fuzz/make_corpus.py" "$build/seeds"
exec "$build/tests/fuzz/fuzz_gguf" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=64 \
    -max_len=8192 -artifact_prefix="$build/found/" -print_final_stats=1 "$build/corpus" "$build/seeds"
