#!/usr/bin/env bash
# Formats all C++ sources in place, or with --check fails on those that are not:  tools/format.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."

clang_format=$(command -v clang-format-14 || command -v clang-format)
options=(-i)
[[ ${1:-} != --check ]] || options=(--dry-run --Werror)
find include src tests examples bench \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) -print0 |
  xargs -0 --no-run-if-empty -n 16 -P "$(nproc)" "$clang_format" --style=file "${options[@]}"
