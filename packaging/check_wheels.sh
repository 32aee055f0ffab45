#!/usr/bin/env bash
# Installs the wheels of a folder as a user does: packaging/check_wheels.sh DIST
# A fresh environment, in which neither pip nor the package can call a compiler, registers the sample
# pair. Then a C and a C++ program find the library in that environment.
set -euo pipefail
dist=$(realpath "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
venv="$work/venv/bin"

for wheel in "$dist"/*.whl; do
  [ "$(stat -c %s "$wheel")" -lt 5000000 ] || [[ $wheel == *cu13* ]] ||
    { echo "$wheel has 5 MB or more"; exit 1; }
done
env PATH="$venv" CC=false CXX=false "$venv/pip" install -q --only-binary :all: "$dist"/*.whl
env PATH="$venv" "$venv/dinoreg-rt" doctor --require cpu
brain=tests/data/brain
env PATH="$venv" "$venv/dinoreg-rt" run -f $brain/fixed_t1.nii.gz -m $brain/moving_t1.nii.gz \
  --preset mind -o "$work/result"
[ -s "$work/result/warped.nii.gz" ]

if command -v cmake > /dev/null; then
  cmake -S tests/capi/consumer -B "$work/consumer" \
    "-Ddinoreg_DIR=$("$venv/python" -m dinoreg_kernels --cmake-dir)"
  cmake --build "$work/consumer"
  "$work/consumer/test_capi"
  "$work/consumer/warp"
else
  echo "skipped: no cmake for the programs in C and C++"
fi
