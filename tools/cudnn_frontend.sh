#!/usr/bin/env bash
# Fetches the header-only cudnn-frontend, which the CUDA backend is built with, into .deps/cudnn-frontend. Does nothing where
# there is no CUDA compiler or the headers are there already.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.32.0
folder=.deps/cudnn-frontend
[[ ! -e $folder/include/cudnn_frontend.h ]] || exit 0
command -v "${CUDACXX:-nvcc}" >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || exit 0

echo "Fetching the headers of cudnn-frontend $version into $folder" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "nvidia-cudnn-frontend==$version"
mkdir -p "$folder"
python3 -m zipfile -e "$work"/nvidia_cudnn_frontend-*.whl "$work/wheel"
cp -r "$work/wheel/include" "$folder/"
