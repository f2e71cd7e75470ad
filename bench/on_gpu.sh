#!/usr/bin/env bash
# What is worth doing where there is an NVIDIA GPU, in under nine minutes: tests on it, then a table against PyTorch.
#
#   bash bench/on_gpu.sh                 results in ${OUT:-bench/results}; PYTHON names the interpreter
#
# Each step has a time limit and survives the failure of another; the exit status says whether all went well.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
mkdir -p "$out"
name=$(date -u +%Y-%m-%d)
failed=0

step() { # step NAME SECONDS COMMAND…
    local label=$1 limit=$2 status
    shift 2
    printf '\n== %s (%s s so far)\n' "$label" "$SECONDS"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name-$label.log" | tail -n 40
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "-- $label: exit status $status"
        failed=1
    fi
}

step environment 40 "$python" -c '
import torch, triton, gpuconv
print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__, "gpuconv", gpuconv.__version__)
for i in range(torch.cuda.device_count()):
    print(i, torch.cuda.get_device_properties(i))
print("triton backend:", gpuconv.backends.get("triton").unavailable() or "available")
assert torch.cuda.is_available()
'
step smoke 60 "$python" -m gpuconv.bench.table --layers resnet50-14-3x3 --numbers bfloat16 --seconds 40
step tests 200 "$python" -m pytest -q -n 6 -k "triton-cuda or cuda-cuda" tests/test_oracle_suite.py tests/test_ops.py tests/test_functional.py
step table 140 "$python" -m gpuconv.bench.table --seconds 115 --out "$out/$name-table.jsonl"
step table-cuda 80 "$python" -m gpuconv.bench.table --backend cuda --seconds 60 --out "$out/$name-table-cuda.jsonl"
echo
echo "results in $out; $SECONDS s in all"
exit "$failed"
