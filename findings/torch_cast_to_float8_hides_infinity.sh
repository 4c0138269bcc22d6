#!/usr/bin/env bash
# torch 2.15.0 (Python 3.11, CPU)
#
# A cast to torch.float8_e4m3fn makes 448, the largest number, of everything above it: of infinity, too. The three other
# 8-bit floats keep an infinity seen, as infinity or NaN. So a check for non-finite values behind a cast to e4m3 finds
# overflows of e5m2 and of the fnuz types, but none of e4m3. Seen:
#
#   float8_e4m3fn     500 -> 448   1e9 -> 448   inf -> 448   -inf -> -448   nan -> nan
#   float8_e5m2       500 -> 512   1e9 -> inf   inf -> inf   -inf -> -inf   nan -> nan
#   float8_e4m3fnuz   500 -> nan   1e9 -> nan   inf -> nan   -inf -> nan    nan -> nan
#   float8_e5m2fnuz   500 -> 512   1e9 -> nan   inf -> nan   -inf -> nan    nan -> nan
#
# Exits non-zero if any of these differs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch

INF, NAN = math.inf, math.nan
NUMBERS = [500.0, 1e9, INF, -INF, NAN]
EXPECTED = {
    torch.float8_e4m3fn: [448, 448, 448, -448, NAN],
    torch.float8_e5m2: [512, INF, INF, -INF, NAN],
    torch.float8_e4m3fnuz: [NAN, NAN, NAN, NAN, NAN],
    torch.float8_e5m2fnuz: [512, NAN, NAN, NAN, NAN],
}
for dtype, expected in EXPECTED.items():
    got = torch.tensor(NUMBERS).to(dtype).float().tolist()
    print(f"{str(dtype).removeprefix('torch.'):16}", *(f"{x:g} -> {y:g}" for x, y in zip(NUMBERS, got)), sep="   ")
    assert all(y == want or (math.isnan(y) and math.isnan(want)) for y, want in zip(got, expected)), "the behaviour has changed"
PYTHON
