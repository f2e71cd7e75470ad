#!/usr/bin/env bash
# What is worth doing where there is an NVIDIA GPU, in under nine minutes: tests on it, the kernels under
# compute-sanitizer, then a table against PyTorch.
#
#   bash bench/on_gpu.sh                 results in ${OUT:-bench/results}; PYTHON names the interpreter
#
# Each step has a time limit and survives the failure of another; the exit status says whether all went well. Steps that
# time nothing run side by side. What a step says is kept whole in its log; its end is shown here.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
mkdir -p "$out"
name=$(date -u +%Y-%m-%d)
failures=$(mktemp -d) # a file for each step that failed: steps side by side share no variables
trap 'rm -rf "$failures"' EXIT

step() { # step NAME SECONDS COMMAND…
    local label=$1 limit=$2 log="$out/$name-$1.log" status begun=$SECONDS
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
    status=$?
    printf '\n== %s (from %s s to %s s)\n%s\n' "$label" "$begun" "$SECONDS" "$(tail -n 40 "$log")"
    if [ "$status" -ne 0 ]; then
        echo "-- $label: exit status $status"
        : >"$failures/$label"
    fi
}

step environment 40 "$python" -c '
import torch, triton, gpuconv
print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__, "gpuconv", gpuconv.__version__)
for i in range(torch.cuda.device_count()):
    print(i, torch.cuda.get_device_properties(i))
for name in ("triton", "cuda"):
    print(f"{name} backend:", gpuconv.backends.get(name).unavailable() or "available")
assert torch.cuda.is_available()
'
step smoke 60 "$python" -m gpuconv.bench.table --layers resnet50-14-3x3 --numbers bfloat16 --seconds 40

step tests 200 "$python" -m pytest -q -n 6 -k "triton-cuda or cuda-cuda" \
    tests/test_on_gpu.py tests/test_oracle_suite.py tests/test_ops.py tests/test_functional.py &
{
    # The first one compiles for those that follow: CuPy and Triton keep what they compile on disk.
    step problems-cuda 60 "$python" -m gpuconv.bench.sanitize --backend cuda --seconds 50
    step memcheck-cuda 70 "$python" -m gpuconv.bench.sanitize --backend cuda --tool memcheck --seconds 45
    step racecheck-cuda 70 "$python" -m gpuconv.bench.sanitize --backend cuda --tool racecheck --seconds 45
} &
{
    # No racecheck: it is for barriers placed by hand, and Triton's compiler places these.
    step problems-triton 60 "$python" -m gpuconv.bench.sanitize --backend triton --seconds 50
    step memcheck-triton 70 "$python" -m gpuconv.bench.sanitize --backend triton --tool memcheck --seconds 45
} &
wait

step table 140 "$python" -m gpuconv.bench.table --seconds 115 --out "$out/$name-table.jsonl"
step table-cuda 80 "$python" -m gpuconv.bench.table --backend cuda --seconds 60 --out "$out/$name-table-cuda.jsonl"
echo
echo "results in $out; $SECONDS s in all"
[ -z "$(ls "$failures")" ]
