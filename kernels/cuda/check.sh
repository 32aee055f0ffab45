#!/usr/bin/env bash
# Compiles the CUDA half for every supported architecture, with warnings as errors, and prints the
# resources of each kernel and the occupancy they allow. Needs nvcc (CUDACXX or the PATH), but no GPU.
# Fails if a hot kernel spills or if features are not loaded 16 bytes at a time.
set -euo pipefail
cd "$(dirname "$0")/.."

export NVCC=${CUDACXX:-nvcc}
architectures=(75 80 86 89 90 100 120)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export logs

compile() {
  "$NVCC" -std=c++20 -O3 -DDR_ISA=cuda -Iinclude -Isrc -Icuda -arch="sm_$1" -c cuda/backend.cu \
    -o "$logs/$1.o" -Xptxas -v -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror \
    > "$logs/$1.log" 2>&1 || { echo "sm_$1:"; cat "$logs/$1.log"; return 1; }
}
export -f compile

# One log for each architecture, because ptxas does not name it in its report. Exit status 255 stops
# xargs at the first failure.
printf '%s\n' "${architectures[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'compile {} || exit 255'
"$NVCC" -std=c++20 -O3 -DDR_ISA=cuda -Iinclude -Isrc -Icuda -arch=compute_75 -ptx cuda/backend.cu \
  -o "$logs/kernels.ptx"
"${PYTHON:-python3}" cuda/resources.py "$logs/kernels.ptx" "$logs"/*.log

# nvcc compiles a memcpy of one float through a pointer to four accesses of one byte each.
if grep -Eq '(ld|st)\.global\S*\.[subf]8' "$logs/kernels.ptx"; then
  echo "a kernel reads or writes single bytes: see load() and store() in portable.h" && exit 1
fi
"${PYTHON:-python3}" cuda/vector_loads.py "$logs/kernels.ptx"
