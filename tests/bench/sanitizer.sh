#!/usr/bin/env bash
# compute-sanitizer over the GPU tests: memcheck, racecheck and initcheck, each its own run.
#   tests/bench/sanitizer.sh [-k EXPRESSION and other options of pytest]
# Fails when a tool finds anything, or a test fails, or none runs. Without a GPU or the tool it says
# why and does nothing. PYTHON names the interpreter; minutes to hours, a subset is chosen with -k.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
problem=$("$python" -c 'import dinoreg_kernels; print(dinoreg_kernels.build_info().cuda_problem or "")')
if [ -n "$problem" ]; then
  echo "skipped: $problem"
  exit 0
fi
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ ! -x "$sanitizer" ]; then
  echo "skipped: compute-sanitizer is not installed; it comes with the CUDA toolkit"
  exit 0
fi

# A pool hands out parts of large blocks: nobody would find what is read beyond an array.
export DINOREG_TEST_POOL=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()
for tool in memcheck racecheck initcheck; do
  printf '\n== %s\n' "$tool"
  if ! "$sanitizer" --tool "$tool" --error-exitcode 99 --target-processes all \
      "$python" -m pytest -q -n 0 -p no:cacheprovider -m gpu "$@" | tee "$log"; then
    failed+=("$tool")
  elif ! grep -Eq '[0-9]+ passed' "$log"; then
    echo "no test ran"
    failed+=("$tool")
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "not clean: ${failed[*]}"
  exit 1
fi
echo "clean: memcheck, racecheck, initcheck"
