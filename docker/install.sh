#!/usr/bin/env bash
# Makes FOLDER an environment with dinoreg-rt, in the versions of the lock file:
#   docker/install.sh FOLDER cpu|gpu [WHEEL]
# The package is built from the sources, or taken from WHEEL, which has CPU kernels alone.
# Both images run this script. It needs no container, and .ci/run runs it for the CPU image.
set -euo pipefail
folder=$1 kind=$2 wheel=${3:-.}
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv "$folder"
case $kind in
  cpu) what=("$wheel[cpu,export]") ;;
  # The CUDA kernels for all architectures, and not only for the GPU of the machine that builds.
  gpu) what=(./packaging/dinoreg-kernels-cu13 '.[gpu,tensorrt,export]'
    -C cmake.define.DINOREG_CUDA_ARCHITECTURES=ALL) ;;
  *) echo "got $kind; wanted cpu or gpu"; exit 2 ;;
esac
"$folder/bin/pip" install --no-cache-dir -c "packaging/lock-$kind.txt" "${what[@]}"
