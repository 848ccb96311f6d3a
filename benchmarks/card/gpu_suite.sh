#!/usr/bin/env bash
# All that needs a card, in three calls that each fit nine minutes:
#
#     benchmarks/card/gpu_suite.sh checks      env smoke tests: values first
#     benchmarks/card/gpu_suite.sh measures    peers bench times sanitize
#     benchmarks/card/gpu_suite.sh tuning      tune, then peers and bench again
#     benchmarks/card/gpu_suite.sh PHASE...    some of these, or native
#
# One card is used: the first one, or the one that CUDA_VISIBLE_DEVICES names.
# Nothing has to be installed but torch, Triton and pytest (CuPy for the cuda backend): where
# robustft.kernels is not importable, a link in this copy makes it so. Results go to ${OUT:-build/gpu}:
# suite.log, summary.txt, tests.xml and results.tar.gz (CSV, JSON, plots, logs), written anew after
# every phase. A phase that fails, or outlasts its limit, loses only itself. TOTAL seconds bound all.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

declare -A CALLS=(
    [checks]="env smoke tests"
    [measures]="peers bench times sanitize"
    [tuning]="tune peers bench"
)
KNOWN="env smoke tests peers bench times sanitize tune native"
PHASES=()
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}
OUT=${OUT:-build/gpu}
WHEELS=${WHEELS:-build/wheels}
TOTAL=${TOTAL:-520}
PYTHON=${PYTHON:-python3}
for word in "${@:-checks}"; do
    if [[ " $KNOWN " != *" $word "* && -z ${CALLS[$word]:-} ]]; then
        echo "gpu_suite.sh: got '$word', expected ${!CALLS[*]} or some of: $KNOWN" >&2
        exit 2
    fi
    read -ra named <<<"${CALLS[$word]:-$word}"
    PHASES+=("${named[@]}")
done

mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
RESULTS=$WORK/results
mkdir -p "$RESULTS/bench"
SUMMARY=$OUT/summary.txt
: >"$SUMMARY"
: >"$OUT/suite.log"
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# What is compiled stays for the next call.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/gpu-cache/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/build/gpu-cache/inductor}
LINKED=

finish() {
    [[ -n $LINKED ]] && rm -f "$LINKED"
    rm -rf "$WORK"
}
trap finish EXIT

say() { echo "$*" | tee -a "$OUT/suite.log"; }

left() { echo $((TOTAL - SECONDS)); }

pack() {
    cp "$OUT/suite.log" "$SUMMARY" "$RESULTS/" 2>/dev/null
    tar -czf "$WORK/results.tar.gz" -C "$WORK" results && mv "$WORK/results.tar.gz" "$OUT/"
}

# step NAME LIMIT COMMAND...: at most LIMIT seconds, or what is left; its end goes to the summary.
step() {
    local name=$1 limit=$2 started=$SECONDS code
    shift 2
    [[ $limit -gt $(left) ]] && limit=$(left)
    if [[ $limit -lt 5 ]]; then
        say "== $name: no time left"
        printf '%-34s %s\n' "$name" "no time left" >>"$SUMMARY"
        return
    fi
    say "== $name (at most $limit s): $*"
    # INT: pytest then reports what it has.
    timeout --signal=INT --kill-after=8 "$limit" "$@" </dev/null 2>&1 | tee -a "$OUT/suite.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) code=ok ;;
        124 | 137) code="stopped at its limit" ;;
        *) code="failed ($code)" ;;
    esac
    printf '%-34s %4d s  %s\n' "$name" $((SECONDS - started)) "$code" >>"$SUMMARY"
}

# What an installation would map into the package.
LINK=robustft/kernels
if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("robustft.kernels") is None)' &&
    [[ ! -e $LINK ]]; then
    ln -s ../kernels "$LINK" && LINKED=$PWD/$LINK
fi

phase_env() {
    command -v nvidia-smi >/dev/null && step nvidia-smi 10 nvidia-smi
    command -v nvcc >/dev/null && step nvcc 10 nvcc --version
    step doctor 60 "$PYTHON" -c 'import robustft, torch
from robustft import backends
print("robustft", robustft.__version__, "torch", torch.__version__)
for name, state in backends.available().items():
    print(f"{name:10}", state.detail if state.runs else f"no: {state.reason}")'
    step ceilings 40 "$PYTHON" -m benchmarks ceilings --out "$RESULTS/ceilings.json"
}

# The C++ module, for the cpu backend; nothing of the other phases needs it.
phase_native() {
    if "$PYTHON" -c 'import robustft._native' 2>/dev/null; then
        say "== native: it is there"
        return
    fi
    local nanobind
    if ! command -v cmake >/dev/null || ! nanobind=$("$PYTHON" -m nanobind --cmake_dir 2>/dev/null)
    then
        say "== native: no cmake or no nanobind, going on without"
        return
    fi
    # shellcheck disable=SC2016 # the inner shell expands them
    step native 60 bash -c '
        cmake -S . -B "$1" -DPython_EXECUTABLE="$(command -v "$2")" -Dnanobind_DIR="$3" >"$1.log" &&
        cmake --build "$1" --parallel "$(nproc)" >>"$1.log" && cp "$1"/_native*.so robustft/ ||
        { tail -n 20 "$1.log"; exit 1; }' native "$WORK/native" "$PYTHON" "$nanobind"
}

# Each op and backend in a process of its own, so that one that hangs or crashes loses itself alone;
# what is likeliest to hang comes last.
phase_smoke() {
    local backend op case=("$PYTHON" -m benchmarks small_cases)
    for backend in triton cuda; do
        for op in dive mpm_nce vrf rsa nearest; do
            [[ $backend == cuda && $op != dive && $op != nearest ]] && continue
            step "smoke $backend $op" 45 "${case[@]}" --backend "$backend" --op "$op" --wgmma no
        done
    done
    step "smoke wgmma" 45 "${case[@]}" --backend cuda --op nearest --wgmma only
    step "smoke wgmma mpm_nce" 45 "${case[@]}" --backend cuda --op mpm_nce
}

phase_tests() {
    local files=(tests/gpu) op workers=()
    for op in dive mpm_nce nearest screening vrf rsa properties; do
        files+=("tests/ops/test_$op.py")
    done
    # Most of the time goes to compiling: on several processes.
    "$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) > 10 ? 10 : $(nproc)))")
    OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=2 step tests "${TESTS_LIMIT:-330}" \
        "$PYTHON" -m pytest -m gpu "${files[@]}" "${workers[@]}" -q -ra -W ignore --tb=short \
        -p no:cacheprovider -o timeout=60 -o timeout_method=thread --durations=10 \
        --junitxml="$OUT/tests.xml"
    cp "$OUT/tests.xml" "$RESULTS/" 2>/dev/null
}

phase_sanitize() {
    local backend tool cases
    for backend in triton cuda; do
        cases=("$PYTHON" -m benchmarks small_cases --backend "$backend")
        # Compiles, too: the sanitizer then finds the kernels in Triton's cache.
        step "small cases, $backend" 40 "${cases[@]}"
        if ! command -v compute-sanitizer >/dev/null; then
            say "== sanitize: compute-sanitizer is not here"
            continue
        fi
        for tool in memcheck racecheck; do
            # Without torch's cache of memory every tensor is an allocation with bounds of its own.
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool, $backend" 40 compute-sanitizer \
                --tool "$tool" --error-exitcode 9 --print-limit 20 "${cases[@]}"
        done
    done
}

# Peers that are not installed, of the wheels that came along: for these runs alone, from no network.
phase_peers() {
    local wheel name
    for wheel in "$WHEELS"/*.whl; do
        [[ -e $wheel ]] || { say "== peers: no wheels in $WHEELS"; return; }
        name=${wheel##*/}
        name=${name%%-*}
        if "$PYTHON" -c 'import importlib.metadata as m, sys; m.version(sys.argv[1])' "$name" \
            2>/dev/null; then
            say "== peers: $name is installed"
            continue
        fi
        step "peer $name" 20 "$PYTHON" -m pip install -q --no-index --no-deps \
            --target "$WORK/peers" "$wheel"
    done
    export PYTHONPATH=$PYTHONPATH:$WORK/peers
}

phase_bench() {
    local run=("$PYTHON" -m benchmarks) to=("--device" cuda --limit 5 --out)
    step launches 45 "$PYTHON" -m benchmarks launches
    step "bench dive" 40 "${run[@]}" dive --shapes 512x512,65536x1024 --seconds 0.4 \
        "${to[@]}" "$RESULTS/bench/dive"
    step "bench mpm_nce small" 60 "${run[@]}" mpm_nce --shapes 512x1000x512,512x512x512 \
        --seconds 0.4 "${to[@]}" "$RESULTS/bench/mpm_nce-small"
    step "bench mpm_nce large" 90 "${run[@]}" mpm_nce --shapes 32768x32768x512 --seconds 0.6 \
        "${to[@]}" "$RESULTS/bench/mpm_nce-large"
    step "bench nearest few" 45 "${run[@]}" nearest --shapes 64x350000x512x350 --seconds 0.4 \
        "${to[@]}" "$RESULTS/bench/nearest-few"
    step "bench nearest many" 75 "${run[@]}" nearest --shapes 50000x350000x512x350 --seconds 1 \
        --providers triton,cuda,topk "${to[@]}" "$RESULTS/bench/nearest-many"
    step "bench vrf" 40 "${run[@]}" vrf --shapes 50000x1000 --seconds 0.4 \
        "${to[@]}" "$RESULTS/bench/vrf"
    step "bench rsa" 45 "${run[@]}" rsa --shapes 20000x512 --seconds 0.4 \
        "${to[@]}" "$RESULTS/bench/rsa"
    local folder
    for folder in "$RESULTS"/bench/*/; do
        [[ -d $folder ]] && step "plots $(basename "$folder")" 20 "${run[@]}" report --out "$folder"
    done
}

# What each kernel takes; and what Nsight Compute says of six of them, where it is installed.
phase_times() {
    step "kernel times" 60 "$PYTHON" -m benchmarks kernel_times --out "$RESULTS/kernel_times.csv"
    command -v ncu >/dev/null || { say "== times: ncu is not here"; return; }
    step ncu 60 ncu --set detailed --csv --log-file "$RESULTS/ncu.csv" --launch-count 6 \
        --kernel-name 'regex:forward_tiles|grad_tiles|forward_rows|backward_rows|screen|moments' \
        "$PYTHON" -m benchmarks kernel_times --once
}

# The user's own tuner, whose cache the benchmarks after it go by; then the shipped table's.
phase_tune() {
    local seconds
    seconds=$(($(left) / 3))
    step "tune here" "$seconds" "$PYTHON" -m robustft tune --limit "$seconds"
    step tune "$seconds" "$PYTHON" -m benchmarks tune --quick --seconds $((seconds - 15)) \
        --csv "$RESULTS/tune.csv"
}

for phase in "${PHASES[@]}"; do
    "phase_$phase"
    pack
done
say "== $SECONDS s in all"
{
    echo
    "$PYTHON" -m benchmarks.report "$RESULTS/bench" 2>&1
} >>"$SUMMARY"
pack
cat "$SUMMARY"
