#!/usr/bin/env bash
# Makes .venv with the Python packages of a requirements file, again only if that file changed:
#   tools/venv.sh [REQUIREMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=${1:-python/requirements.txt}
stamp=.venv/installed-$(basename "$requirements")
fingerprint=$(cat python/requirements*.txt | sha256sum)
[[ ! -x .venv/bin/python || ! -f $stamp || $(<"$stamp") != "$fingerprint" ]] || exit 0

echo "Installing Python packages into .venv ($requirements)" >&2
[[ -x .venv/bin/python ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 -r "$requirements"
echo "$fingerprint" >"$stamp"
