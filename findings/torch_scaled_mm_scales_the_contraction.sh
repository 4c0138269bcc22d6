#!/usr/bin/env bash
# torch 2.15.0 (Python 3.11, CPU)
#
# torch.nn.functional.scaled_mm with RowWise scales wants a scale for each column of b, as (1, N). On a CPU it takes one as
# (N, 1), too, if b is square, and then scales the rows of b, along which it sums, instead of its columns. Nothing warns, and
# the result is wrong. Seen, as relative errors:
#
#   scale_b (1, 32)   against sa * (a @ b) * sb   0.000
#   scale_b (32, 1)   against sa * (a @ b) * sb   0.407   against sa * (a @ (sb * b))   0.000
#
# Why: the number of elements of scale_b is checked, and for scale_a the shape. torch._scaled_mm refuses the same scale_b.
#
# Exits non-zero if scale_b as (N, 1) is refused or scales the columns.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn.functional import ScalingType, scaled_mm

N = 32
torch.manual_seed(0)
a, b = torch.randn(N, N).to(torch.float8_e4m3fn), torch.randn(N, N).to(torch.float8_e4m3fn).t()
scale_a, scale_b = torch.rand(N, 1) + 0.5, torch.rand(N, 1) + 0.5
columns = scale_a * (a.float() @ b.float()) * scale_b.view(1, N)
contraction = scale_a * (a.float() @ (scale_b * b.float()))


def error(scale, exact):
    out = scaled_mm(a, b, scale_a, ScalingType.RowWise, scale, ScalingType.RowWise, output_dtype=torch.float32)
    return (torch.linalg.vector_norm(out - exact) / torch.linalg.vector_norm(exact)).item()


print(f"scale_b (1, {N})   against sa * (a @ b) * sb   {error(scale_b.view(1, N), columns):.3f}")
print(f"scale_b ({N}, 1)   against sa * (a @ b) * sb   {error(scale_b, columns):.3f}   "
      f"against sa * (a @ (sb * b))   {error(scale_b, contraction):.3f}")
assert error(scale_b.view(1, N), columns) < 1e-5, "the behaviour has changed"
assert error(scale_b, columns) > 0.1, "the behaviour has changed"
assert error(scale_b, contraction) < 1e-5, "the behaviour has changed"
try:
    torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16)
except ValueError:
    pass
else:
    raise AssertionError("torch._scaled_mm takes it, too")
PYTHON
