#!/usr/bin/env bash
# Writes packaging/lock-cpu.txt and lock-gpu.txt: packaging/lock.sh
# They hold the versions with which CI and the images install the extras, for every Python that the
# project supports. Use them as constraints: pip install -c packaging/lock-cpu.txt '.[dev,cpu,export]'
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -q uv
# This distribution comes from this tree, and so must not become a constraint.
own=dinoreg-kernels-cu13
echo "$own @ file://$PWD/packaging/$own" > "$work/own.txt"
lock() {
  "$work/tools/bin/uv" pip compile -q pyproject.toml --universal --python-version 3.11 \
    --override "$work/own.txt" --no-emit-package "$own" --no-annotate --no-header "${@:2}" |
    sed '1i # Made by packaging/lock.sh.' > "$work/lock.txt"
  mv "$work/lock.txt" "packaging/$1"
}
lock lock-cpu.txt --extra dev --extra cpu --extra export \
  --extra openvino --extra rtx --extra oracle
# TensorRT is left out, because its metadata is only on NVIDIA's index; its range is in pyproject.toml.
lock lock-gpu.txt --extra gpu --extra export
