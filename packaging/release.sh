#!/usr/bin/env bash
# Builds the wheels and the source archive of a release: packaging/release.sh DIST
# Needs Docker or Podman and a network: cibuildwheel compiles in the manylinux_2_28 image, so that the
# wheels run with glibc 2.28 or newer. The CUDA wheel, for all architectures, takes most of the time.
# Upload with: python -m twine upload DIST/*
set -euo pipefail
dist=$(realpath -m "$1")
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || { echo "the working tree has changes"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build cibuildwheel twine

"$work/tools/bin/python" -m build --sdist --outdir "$dist" .
for project in . packaging/dinoreg-kernels-cu13; do
  "$work/tools/bin/cibuildwheel" --platform linux --output-dir "$dist" \
    --config-file "$project/pyproject.toml" "$project"
done
"$work/tools/bin/python" -m twine check "$dist"/*
packaging/check_wheels.sh "$dist"
