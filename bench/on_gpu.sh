#!/usr/bin/env bash
# What is worth doing where there is an NVIDIA GPU, in nine minutes: are the kernels right, then how quick are they.
#
#   bash bench/on_gpu.sh                 results in ${OUT:-bench/results}; PYTHON names the interpreter
#   RESUME=FILE.jsonl bash bench/on_gpu.sh   goes on with an earlier call's measurements, and does not check again
#
# Each step has a time limit and survives the failure of another; the exit status says whether all went well.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
resume=${RESUME:-}
mkdir -p "$out"
name=$(date -u +%Y-%m-%d)
results=$out/$name-gpu.jsonl
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
bench() { # bench NAME SECONDS OPTIONS…: stops by itself before it is stopped
    step "$1" $(($2 + 25)) "$python" -m gpuconv bench --device cuda --seconds "$2" --out "$results" "${@:3}"
}

if [ -n "$resume" ] && [ "$resume" != "$results" ]; then cp "$resume" "$results"; fi
step doctor 40 "$python" -m gpuconv doctor
if [ -z "$resume" ]; then
    step smoke 45 "$python" -m gpuconv bench --device cuda --layer resnet50.conv4_3x3 --out "$out/$name-smoke.jsonl"
    step check-triton 60 "$python" -m gpuconv check --device cuda --backend triton --seeds 4
    step check-cuda 60 "$python" -m gpuconv check --device cuda --backend cuda --seeds 4
    step tests 100 "$python" -m pytest -q -n 6 -k "triton-cuda or cuda-cuda" tests/test_ops.py tests/test_functional.py
fi
# The most telling first; what there was no time for is left to the next call.
bench resnet50 $((SECONDS < 330 ? 90 : 40)) --suite resnet50
bench depthwise $((SECONDS < 430 ? 40 : 20)) --suite convnext_t --suite replknet31
bench rest $((SECONDS < 470 ? 500 - SECONDS : 20)) --suite airbench94 --suite resnet9 --suite mobilenetv2 --suite stems \
    --suite unet --suite resnext50 --suite segmentation --suite vgg16 --suite deepbench --suite r3d18 --suite wav2vec2
step report 25 "$python" -m gpuconv bench --report "$results" --csv "$out/$name-gpu.csv" --plots "$out/$name-plots"
echo
echo "results in $out; $SECONDS s in all"
exit "$failed"
