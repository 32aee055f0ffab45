#!/usr/bin/env bash
# Everything to check and measure on a first GPU machine, in order; docs/gpu_checks.md explains it.
#   tests/bench/first_gpu.sh OUTPUT
# A step that fails or takes too long is recorded, and the next one begins nevertheless. OUTPUT
# receives the log of each step, first_gpu.json with all numbers, and first_gpu.md with the tables for
# the documentation. Exits with 1 if a step failed or a target was missed.
#
# PYTHON names the interpreter of the environment (default: python3). Optional: DATA, the folder of
# the labelled pairs; PEER, the interpreter of an environment with convexAdam and torch; DEVICE
# (default: cuda:0); ENGINE (default: tensorrt; ort-cuda needs no engine); BRIEF=1, few runs.
set -uo pipefail
cd "$(dirname "$0")/../.."

[ $# = 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1/logs" || exit 7
out=$(cd "$1" && pwd)
python=${PYTHON:-python3}
device=${DEVICE:-cuda:0}
engine=${ENGINE:-tensorrt}
runs=50 few=20
[ -z "${BRIEF:-}" ] || runs=3 few=2
: > "$out/steps.tsv"
export DINOREG_CACHE="${DINOREG_CACHE:-$out/cache}"
[ -z "${DATA:-}" ] || export DINOREG_TEST_DATA=$DATA

# step NAME LIMIT_S COMMAND...: the log holds both streams, NAME.out the standard output alone.
step() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  printf '%s  %s: %s\n' "$(date +%H:%M:%S)" "$name" "$*"
  { timeout -k 10 "$limit" "$@" > "$out/logs/$name.out"; } 2> "$out/logs/$name.err"
  code=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) "$*" >> "$out/steps.tsv"
  [ $code = 0 ] || tail -n 3 "$out/logs/$name.err" "$out/logs/$name.out" | sed 's/^/    /'
}
skip() {
  printf '%s\tskipped\t0\t%s\n' "$1" "$2" >> "$out/steps.tsv"
  printf '%s  %s: skipped, %s\n' "$(date +%H:%M:%S)" "$1" "$2"
}
rt=("$python" -m dinoreg_rt)
fixed=tests/data/brain/fixed_t1.nii.gz moving=tests/data/brain/moving_t1.nii.gz

# Is everything there?
step machine 60 nvidia-smi --format=csv,noheader \
  --query-gpu=name,driver_version,compute_cap,clocks.sm,clocks.max.sm,power.limit,memory.total
step doctor 120 "${rt[@]}" doctor --strict --require "$device" --json
step resources 900 bash kernels/cuda/check.sh

# Is it right?
step tests 3000 "$python" -m pytest -n 0 -q -m gpu -p no:cacheprovider --junitxml "$out/logs/tests.xml"
for n in 1 2; do
  step "same_bits_$n" 300 "${rt[@]}" run -f $fixed -m $moving -o "$out/same_bits_$n" --device "$device"
done
step same_bits 60 cmp "$out/same_bits_1/transform.h5" "$out/same_bits_2/transform.h5"
step memory_limit 120 bash -c '"$@"; [ $? = 0 ] || [ $? = 6 ]' _ \
  "${rt[@]}" run -f $fixed -m $moving -o "$out/memory_limit" --device "$device" --gpu-memory 100MB

# How fast without an encoder?
step bench 900 "${rt[@]}" bench --device "$device" --iterations 80 --runs $runs --json
step bench_given_start 900 "${rt[@]}" bench --device "$device" --initial none --iterations 80 \
  --runs $runs --json
step bench_without_trust 900 "${rt[@]}" bench --device "$device" --initial none --no-trust \
  --iterations 80 --runs $runs --json

# What does recording stages as graphs gain?
step sessions 900 "$python" tests/bench/sessions.py $fixed $moving --runs $few

# How fast with an encoder? Random weights are enough for time and memory.
step export 900 "${rt[@]}" export onnx --random-seed 1 --model dinov3-vitl16 --size 512x512 \
  -o "$out/bundle"
if [ "$engine" = tensorrt ] || [ "$engine" = tensorrt-rtx ]; then
  step engine 3000 "${rt[@]}" export engine "$out/bundle" --precision bf16 \
    --backend "$([ "$engine" = tensorrt ] && echo tensorrt || echo rtx)"
else
  skip engine "$engine needs none"
fi
step bench_fast 1800 "${rt[@]}" bench --device "$device" --preset fast --token-grid 32 32 \
  --encoder "$out/bundle" --engine "$engine" --runs $few --json
step bench_24_channels 1800 "${rt[@]}" bench --device "$device" --encoder "$out/bundle" \
  --engine "$engine" --initial none --slice-stride 4 --iterations 80 --runs $few --json
step encoder 1800 "$python" tests/bench/encoder.py --bundle "$out/bundle" --device cuda --batch 8 \
  --rounds $few

# Compared with convexAdam? Then the long checks.
if [ -n "${PEER:-}" ]; then
  step convexadam 3000 "${rt[@]}" bench --device "$device" --against convexadam \
    --peer-python "$PEER" --runs $few --peer-runs 3 --json
else
  skip convexadam "PEER names no interpreter with convexAdam"
fi
step many_runs 1800 "$python" -m pytest -n 0 -q -m gpu -p no:cacheprovider \
  tests/runtime/test_many_runs.py
step sanitizer 7200 env PYTHON="$python" tests/bench/sanitizer.sh ${BRIEF:+-k test_solver}

"$python" tests/bench/first_gpu_tables.py "$out"
