#!/usr/bin/env bash
# Builds, checks and measures on a machine with an NVIDIA GPU, in one command:
#
#   bench/gpu.sh [options] [STEP...]
#
# Steps, run in the order given (by default all of them, in this one); a step that fails does not stop the next:
#   build     the library, its CUDA tests and the benchmark of ops
#   test      every op against the CPU's scalar reference
#   ops       time of every op, as a share of this GPU's limits           (ops.json)
#   models    decode, prefill and memory of whole models                  (models.json; needs numpy and cffi)
#   python    the Python tests on the GPU                  (needs pytest, cffi and gguf too; faster with xdist)
#   fidelity  choices beside the CPU's, FASA-M beside FASA-C, hits in the cache of rows          (needs numpy and cffi)
#   sanitize  compute-sanitizer's memcheck and racecheck on tests of every op
#
# Options:
#   --out DIR             logs and results (default build/gpu-results)
#   --build DIR           use what is built there: then "build" is no step unless it is named (default build/gpu)
#   --total SECONDS       for all steps; the last ones get what is left
#   --limit STEP=SECONDS  for one step
#   --types Q4_K,F16      for "ops" (default all)
#   --models "A:B C:D"    shape:mix as bench/gpu_models.py has them (default all that it has)
#   --models-args "..."   more of its options, such as --depths, --methods, --fill, --dir
#   --peer LLAMA_BENCH    a CUDA llama.cpp's llama-bench, measured on the same models
#   --sanitize REGEX      tests for "sanitize" (default some of every op; "." for all)
#   --python PROGRAM      (default python3)
# shellcheck disable=SC2317 # functions are called by name
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
all_steps=(build test ops models python fidelity sanitize)
declare -A limit=([build]=480 [test]=150 [ops]=150 [models]=540 [python]=300 [fidelity]=300 [sanitize]=300)
out=$root/build/gpu-results build='' total=0 types='' models='' models_args='' peer='' python=python3
sanitize='decode_attention_(groups|selected$|in_a_graph|unaligned)|prefill_attention_(of_groups|where_rows|over_a_tile)|rows_in_host_memory'
sanitize+='|^(odd_shapes|float_rows|several_products|norm_and_product|gate_and_up)|prefill_(adds_bias|runs_products)'
sanitize+='|_mass$|page_bounds|key_similarity|rope_store_does|scores_(of_dominant|count)|topk_of_(short|many)'
sanitize+='|activations_have|norm_of_rows|gates_in|rows_of_every_type|attend_best_(once|of_shapes|with_a_cache)|mail_between|codes|mma|keep_listed|clear_scores|scores_of_whole|(average|expand)_pages|bound_queries'

usage() { sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

steps=()
while (($#)); do
    case $1 in
        --limit)
            [[ ${2-} =~ ^([a-z]+)=([0-9]+)$ && -n ${limit[${BASH_REMATCH[1]}]-} ]] || usage
            limit[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
            shift 2
            ;;
        --out | --build | --total | --types | --models | --models-args | --peer | --sanitize | --python)
            [[ $# -ge 2 ]] || usage
            name=${1#--}
            printf -v "${name//-/_}" %s "$2"
            shift 2
            ;;
        *)
            [[ -n ${limit[$1]-} ]] || usage
            steps+=("$1")
            shift
            ;;
    esac
done
[[ $total =~ ^[0-9]+$ ]] || usage
if ((${#steps[@]} == 0)); then
    steps=("${all_steps[@]}")
    [[ -z $build ]] || steps=("${all_steps[@]:1}")
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
build=$(realpath -m "${build:-$root/build/gpu}")
cd "$root"

# What a step prints last is its line in the summary. It returns 77 when it cannot be done here.
skipped=77

step_build() {
    local generator=()
    if command -v ninja >/dev/null; then generator=(-G Ninja); fi
    cmake -S . -B "$build" "${generator[@]}" -DFASA_TESTS=ON -DFASA_CUDA=ON
    cmake --build "$build" --parallel "$(nproc)" --target fasa fasa_cuda_tests fasa_gpu_ops
    echo "in $build"
}

tests() { "$build/tests/native/cuda/fasa_cuda_tests" "$@"; }

step_test() { tests; }

step_ops() {
    "$build/fasa_gpu_ops" --json "$out/ops.json" ${types:+--types "$types"}
    echo "$(grep -c '"op"' "$out/ops.json") measurements, all of them finite"
}

# Whether Python has these modules; says what is missing.
have_modules() {
    "$python" - "$@" <<'END'
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if missing:
    print("skipped: Python has no", ", ".join(missing))
sys.exit(bool(missing))
END
}

export_package() { export FASA_LIBRARY=$build/libfasa.so PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1; }

step_models() {
    have_modules numpy cffi || return "$skipped"
    export_package
    local limits=()
    if [[ -e $out/ops.json ]] || "$build/fasa_gpu_ops" --json "$out/ops.json" limits; then
        limits=(--ops "$out/ops.json")
    fi
    # shellcheck disable=SC2086 # lists of words
    "$python" bench/gpu_models.py $models "${limits[@]}" --json "$out/models.json" --seconds $((seconds - 20)) \
        ${peer:+--peer "$peer"} $models_args
    echo "all models measured"
}

step_python() {
    have_modules numpy cffi pytest gguf || return "$skipped"
    export_package
    local pytest=("$python" -m pytest -c pyproject.toml -p no:cacheprovider -q tests/python)
    if have_modules xdist >/dev/null; then
        "${pytest[@]}" -m "gpu and not alone" -n $(($(nproc) > 2 ? $(nproc) - 2 : 1))
        "${pytest[@]}" -m "gpu and alone"
    else
        "${pytest[@]}" -m gpu
    fi
    # They skip where no GPU can be used, which is no success here.
    grep -qE '[0-9]+ passed' "$out/python.log"
    grep -oE '[0-9]+ passed' "$out/python.log" | paste -sd ' '
}

step_fidelity() {
    have_modules numpy cffi || return "$skipped"
    export_package
    "$python" bench/gpu_fidelity.py
    echo "all bars met"
}

# Runs the sanitizer given on tests by name, several processes at a time: the references are computed on the CPU.
sanitized() {
    local tool=$1 n=$(($(nproc) >= 16 ? 8 : 4)) i failed=0 processes=()
    shift
    local names=("$@")
    for ((i = 0; i < n && i < ${#names[@]}; i++)); do
        local part=() j
        for ((j = i; j < ${#names[@]}; j += n)); do part+=("${names[j]}"); done
        # API errors are left out: running out of memory is one that tests provoke.
        timeout -k 5 $(((seconds - 10) / 2)) "$sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 9 \
            "$filter" kns=fasa "$build/tests/native/cuda/fasa_cuda_tests" "${part[@]}" &
        processes+=($!)
    done
    for i in "${processes[@]}"; do
        wait "$i" || {
            echo "$tool: a process ended with exit code $?"
            failed=1
        }
    done
    return "$failed"
}

step_sanitize() {
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || {
        echo "skipped: no compute-sanitizer"
        return "$skipped"
    }
    # Only our kernels, not those of cuBLAS; the option's name depends on the version.
    local filter=--filter name
    for name in --kernel-name --kernel-regex; do
        if [[ $("$sanitizer" --help) == *"$name "* ]]; then filter=$name; fi
    done
    # Those that end in an error of the device on purpose are left out.
    local names
    mapfile -t names < <(tests --list | grep -E "$sanitize" | grep -vE 'errors_name|recording_that_fails')
    ((${#names[@]} > 0)) || {
        echo "no test is called like $sanitize"
        return 1
    }
    # racecheck cannot run the kernels of cuBLAS on an H200 ("The Sanitizer failed to handle a hardware exception"), and
    # takes very long where clusters wait for mail: attend_best_once has a little of that.
    local for_racecheck
    mapfile -t for_racecheck < <(printf '%s\n' "${names[@]}" | grep -vE '^cuda_prefill_|attend_best_(of|with)_')
    local memcheck=clean racecheck=clean
    sanitized memcheck "${names[@]}" || memcheck='NOT CLEAN or out of time'
    ((${#for_racecheck[@]} == 0)) || sanitized racecheck "${for_racecheck[@]}" || racecheck='NOT CLEAN or out of time'
    # Hazards that are warnings leave the exit code alone.
    if grep -qE 'SUMMARY: [1-9]' "$out/sanitize.log"; then racecheck+=', with findings'; fi
    echo "memcheck $memcheck (${#names[@]} tests), racecheck $racecheck (${#for_racecheck[@]})"
    [[ $memcheck$racecheck == cleanclean ]]
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
    echo "$(nproc) cores, $(git describe --always --dirty 2>/dev/null || echo 'no repository'), $(date -u +%FT%TZ)"
}

export root out build types models models_args peer python sanitize skipped
export -f step_build step_test step_ops step_models step_python step_fidelity step_sanitize tests have_modules export_package sanitized

machine
summary=() worst=0
for step in "${steps[@]}"; do
    seconds=${limit[$step]}
    if ((total > 0 && total - SECONDS < seconds)); then seconds=$((total - SECONDS)); fi
    log=$out/$step.log
    start=$SECONDS
    if ((seconds < 10)); then
        status=out code=0
        echo 'no time left' >"$log"
    else
        echo "== $step, after $start s, for up to $seconds s"
        code=0
        export seconds
        timeout -k 10 "$seconds" bash -euo pipefail -c "step_$step" >"$log" 2>&1 </dev/null || code=$?
        case $code in
            0) status=ok ;;
            "$skipped") status=skip ;;
            124 | 137) status=out ;;
            *) status=FAIL ;;
        esac
        if [[ $status == FAIL ]]; then
            echo "   the end of $log:"
            tail -n 15 "$log" | cut -c 1-200 | sed 's/^/   | /'
        fi
    fi
    if [[ $status == FAIL || $status == out ]]; then worst=1; fi
    summary+=("$(printf '%-9s %-5s %5d s   %s' "$step" "$status" $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c 1-90)")")
    echo "   $step: $status, $((SECONDS - start)) s"
done

highlights='^(limits|layer|sparse layer|linear_prefill +Q4_K|attend_prefill'
highlights+='|(attend_dense|linear_decode +(Q4_K|Q6_K|Q8_0|F16)|glu_decode +Q4_K).* 1 row[, ])'
for step in "${steps[@]}"; do
    case $step in
        ops) [[ ! -e $out/ops.log ]] || { echo && sed -n -E "/$highlights/p" "$out/ops.log" && echo "(the rest in ops.log)"; } ;;
        models) [[ ! -e $out/models.log ]] || { echo && sed -n -E '/^(###|\||dense|fasa)/p' "$out/models.log"; } ;;
    esac
done
printf '\n%-9s %-5s %7s   %s\n' step end time 'last line of its log'
printf '%s\n' "${summary[@]}"
exit $worst
