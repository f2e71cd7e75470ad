#!/usr/bin/env bash
# What is worth doing where there is an NVIDIA GPU, in nine minutes: are the kernels right, then how quick are they.
#
#   bash bench/on_gpu.sh                     results in ${OUT:-bench/results}; PYTHON names the interpreter
#   RESUME=FILE.jsonl bash bench/on_gpu.sh   goes on with an earlier call's measurements, and does not check again
#   CIFAR10=DIR bash bench/on_gpu.sh         the trainer instead, on CIFAR-10's binary version: nine minutes
#
# Each step has a time limit and survives the failure of another; the exit status says whether all went well. Steps that
# time nothing run side by side. What a step says is kept whole in its log; its end is shown here.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
resume=${RESUME:-}
mkdir -p "$out"
name=$(date -u +%Y-%m-%d)
results=$out/$name-gpu.jsonl
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
bench() { # bench NAME SECONDS OPTIONS…: stops by itself before it is stopped
    step "$1" $(($2 + 25)) "$python" -m gpuconv bench --device cuda --seconds "$2" --out "$results" "${@:3}"
}

if [ -n "$resume" ] && [ "$resume" != "$results" ]; then cp "$resume" "$results"; fi
step doctor 40 "$python" -m gpuconv doctor
if [ -z "$resume" ]; then # what is wrong here is not planned by what follows
    step self-test 150 "$python" -m gpuconv doctor --self-test
fi
if [ -n "${CIFAR10:-}" ]; then
    data=(--data "cifar10:$CIFAR10")
    for model in tutorial resnet18; do
        step "plain-loop-$model" 45 "$python" -m gpuconv.bench.plain_loop "${data[@]}" --model "$model" --batch-size 512 --json
    done
    # 94 % is the goal: the mean of five seeds, beside stock PyTorch's convolutions in the same run.
    step airbench94 400 "$python" -m gpuconv compare "${data[@]}" --model airbench94 --dtype float16 --channels-last \
        --backends auto,aten --seeds 5 --device cuda --out "$out/$name-airbench94" --json
    step resume 60 "$python" -m pytest -q -n 4 tests/cli/test_train.py -k "on_a_gpu_too"
    rm -rf "$out/$name"-airbench94/*/ # the runs; the table and the picture stay
    echo "results in $out; $SECONDS s in all"
    [ -z "$(ls "$failures")" ]
    exit
fi
if [ -z "$resume" ]; then
    step smoke 45 "$python" -m gpuconv bench --device cuda --layer resnet50.conv4_3x3 --out "$out/$name-smoke.jsonl"
    step tests 180 "$python" -m pytest -q -n 6 -k "triton-cuda or cuda-cuda" \
        tests/test_on_gpu.py tests/backends/test_oracle_suite.py tests/ops/test_convolution.py tests/ops/test_compile.py \
        tests/test_functional.py tests/test_transposed.py &
    {
        # The first one compiles for those that follow: CuPy and Triton keep what they compile on disk.
        step problems-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --seconds 50
        step memcheck-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --tool memcheck --seconds 40
        step racecheck-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --tool racecheck --seconds 40
    } &
    {
        # No racecheck: it does not know every way in which Triton's kernels wait for their copies.
        step problems-triton 60 "$python" -m gpuconv.checking.sanitize --backend triton --seconds 50
        step memcheck-triton 60 "$python" -m gpuconv.checking.sanitize --backend triton --tool memcheck --seconds 40
    } &
    wait
fi
# The most telling first; what there was no time for is left to the next call.
bench resnet50 $((SECONDS < 330 ? 90 : 40)) --suite resnet50
bench depthwise $((SECONDS < 430 ? 40 : 20)) --suite convnext_t --suite replknet31 --suite mamba
bench fused $((SECONDS < 440 ? 30 : 15)) --suite resnet50 --direction fused --batch 8
bench rest $((SECONDS < 370 ? 400 - SECONDS : 20)) --suite airbench94 --suite resnet9 --suite mobilenetv2 --suite stems \
    --suite efficientnet_b0 --suite unet --suite resnext50 --suite segmentation --suite vgg16 --suite deepbench --suite r3d18 --suite wav2vec2
# Tiles beside each other, and beside what the formula says: from these its guess for the L2 cache can be told. Last,
# since it records what won.
tiles=(--layer resnet50.conv3_3x3 --layer resnet50.conv2_3x3 --direction forward --dtype bfloat16)
for layout in channels_last contiguous; do
    step "tiles-$layout" 40 "$python" -m gpuconv tune "${tiles[@]}" --layout "$layout" --batch 32 --seconds 30 --json
done
step report 25 "$python" -m gpuconv bench --report "$results" --csv "$out/$name-gpu.csv" --plots "$out/$name-plots"
echo
echo "results in $out; $SECONDS s in all"
[ -z "$(ls "$failures")" ]
