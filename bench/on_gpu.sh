#!/usr/bin/env bash
# What is worth doing where there is an NVIDIA GPU: are the kernels right, then how quick are they.
#
#   bash bench/on_gpu.sh [STEP…]     all but train, in this order, if none is named; each takes 200 s at most
#
#   check      doctor, the self-test, and the tests that need a GPU
#   sanitize   small problems under NVIDIA's compute-sanitizer
#   bench      the layers of docs/measure.md, then more suites: the most telling first
#   tiles      tiles beside each other, and beside what the formula says
#   train      airbench94 and the trainer's other networks on CIFAR-10: needs CIFAR10, takes nine minutes
#
#   OUT=DIR             where results and logs go (bench/results)
#   PYTHON=python3.12   the interpreter
#   RESUME=FILE.jsonl   measurements of an earlier call, which `bench` goes on with
#   CIFAR10=DIR         the binary version of CIFAR-10
#
# Each command has a time limit and survives the failure of another; the exit status says whether all went well. What it
# says is kept whole in its log; the end is shown here.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
resume=${RESUME:-}
mkdir -p "$out"
name=$(date -u +%Y-%m-%d)
results=$out/$name-gpu.jsonl
processes=$(env -u OMP_NUM_THREADS nproc)
failures=$(mktemp -d) # a file for each command that failed: those side by side share no variables
trap 'rm -rf "$failures"' EXIT

run() { # run NAME SECONDS COMMAND…
    local label=$1 limit=$2 log="$out/$name-$1.log" status begun=$SECONDS
    shift 2
    # Interrupted, most say what they found so far. Bash has what it starts in the background ignore that.
    timeout --signal=INT --kill-after=10 "$limit" env --default-signal=INT "$@" >"$log" 2>&1
    status=$?
    printf '\n== %s (from %s s to %s s)\n%s\n' "$label" "$begun" "$SECONDS" "$(tail -n 40 "$log")"
    if [ "$status" -ne 0 ]; then
        echo "-- $label: exit status $status"
        : >"$failures/$label"
    fi
}

check() {
    run doctor 20 "$python" -m gpuconv doctor
    run self-test 80 "$python" -m gpuconv doctor --self-test --json # what is wrong here is not planned by what follows
    run tests 90 "$python" -m pytest -q -n "$processes" -k "triton-cuda or cuda-cuda" --timeout=60 \
        tests/test_on_gpu.py tests/backends/test_oracle_suite.py tests/ops/test_convolution.py tests/ops/test_compile.py \
        tests/test_functional.py tests/test_transposed.py
}

sanitize() {
    {
        # The first one compiles for those that follow: CuPy and Triton keep what they compile on disk.
        run problems-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --seconds 50
        run memcheck-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --tool memcheck --seconds 40
        run racecheck-cuda 60 "$python" -m gpuconv.checking.sanitize --backend cuda --tool racecheck --seconds 40
    } &
    {
        # No racecheck: it does not know every way in which Triton's kernels wait for their copies.
        run problems-triton 60 "$python" -m gpuconv.checking.sanitize --backend triton --seconds 50
        run memcheck-triton 60 "$python" -m gpuconv.checking.sanitize --backend triton --tool memcheck --seconds 40
    } &
    wait
}

bench() {
    if [ -n "$resume" ] && [ "$resume" != "$results" ]; then cp "$resume" "$results"; fi
    local layer layers=()
    for layer in conv2_3x3 conv3_3x3 conv4_3x3 conv3_expand conv4_reduce conv3_3x3_stride2; do
        layers+=(--layer "resnet50.$layer")
    done
    measure layers 80 "${layers[@]}" --layer stems.resnet --batch 32 --dtype bfloat16 --dtype tf32
    measure rest 65 --suite resnet50 --suite convnext_t --suite replknet31 --suite mamba --suite airbench94 \
        --suite resnet9 --suite mobilenetv2 --suite stems --suite efficientnet_b0 --suite unet --suite resnext50 \
        --suite segmentation --suite vgg16 --suite deepbench --suite r3d18 --suite wav2vec2
    run report 15 "$python" -m gpuconv bench --report "$results" --csv "$out/$name-gpu.csv" --plots "$out/$name-plots"
}
measure() { # measure NAME SECONDS OPTIONS…: stops by itself before it is stopped
    run "$1" $(($2 + 15)) "$python" -m gpuconv bench --device cuda --seconds "$2" --compile-first "$processes" \
        --out "$results" "${@:3}"
}

tiles() { # from these the formula's guess for the L2 cache can be told; they record what won
    local layout
    for layout in channels_last contiguous; do
        run "tiles-$layout" 90 "$python" -m gpuconv tune --layer resnet50.conv3_3x3 --layer resnet50.conv2_3x3 \
            --direction forward --dtype bfloat16 --layout "$layout" --batch 32 --seconds 75 --json
    done
}

train() {
    local model data=(--data "cifar10:${CIFAR10:?is the folder of the data set}")
    for model in tutorial resnet18; do
        run "plain-loop-$model" 45 "$python" -m gpuconv.bench.plain_loop "${data[@]}" --model "$model" --batch-size 512 --json
    done
    # 94 % is the goal: the mean of five seeds, beside stock PyTorch's convolutions in the same run.
    run airbench94 400 "$python" -m gpuconv compare "${data[@]}" --model airbench94 --dtype float16 --channels-last \
        --backends auto,aten --seeds 5 --device cuda --out "$out/$name-airbench94" --json
    run resume 60 "$python" -m pytest -q -n 4 tests/cli/test_train.py -k "on_a_gpu_too"
    rm -rf "$out/$name"-airbench94/*/ # the runs; the table and the picture stay
}

for step in "${@:-check}"; do
    case $step in
    check | sanitize | bench | tiles | train) ;;
    *) echo "no step is called $step: check, sanitize, bench, tiles, train" >&2 && exit 2 ;;
    esac
done
[ "$#" -gt 0 ] || set -- check sanitize bench tiles
for step in "$@"; do "$step"; done
echo
echo "results in $out; $SECONDS s in all"
[ -z "$(ls "$failures")" ]
