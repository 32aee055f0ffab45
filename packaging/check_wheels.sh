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
  cmake -S tests/host/consumer -B "$work/host" \
    "-Ddinoreg_DIR=$("$venv/python" -m dinoreg_kernels --cmake-dir)"
  cmake --build "$work/host"
  # It names no interpreter: the library finds that of the environment in which it lies.
  if "$venv/python" -c \
    'import sysconfig; raise SystemExit(not sysconfig.get_config_var("Py_ENABLE_SHARED"))'; then
    "$work/host/program" | tee "$work/host.log"
    grep -q "the same from another thread: 1" "$work/host.log"
  else
    echo "skipped: this Python has no shared library for libdinoreg_host"
  fi
else
  echo "skipped: no cmake for the programs in C and C++"
fi
