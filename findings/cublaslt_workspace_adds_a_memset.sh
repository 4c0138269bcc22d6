#!/usr/bin/env bash
# torch 2.11.0+cu130 (Python 3.12, one H200); the same by the C API of cuBLASLt 13.1
#
# On Hopper, nearly every product of cuBLASLt is two operations on the stream, not one: before its kernel it clears four
# bytes at the beginning of the workspace, where the kernel counts tiles. With no workspace at all the same product is one
# kernel ("ssched" in its name: tiles are dealt out beforehand) and gives the same bits. Heuristics say of both that they
# need 4 or 0 bytes, and never that there is a memset. Seen, for torch._scaled_mm, e4m3, 4096 x 4096 x 4096:
#
#   CUBLASLT_WORKSPACE_SIZE unset   nvjet_sm90_..._TNT          memsets 10 of 10 products
#   CUBLASLT_WORKSPACE_SIZE=0       nvjet_sm90_..._ssched_...   memsets 0 of 10 products
#
# It matters where a kernel before would let the next one start early (programmatic dependent launch): a memset does not
# start early.
#
# Exits non-zero if a workspace makes no memset, or if its absence changes the product.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >"$folder/products.py" <<'PYTHON'
import hashlib

import torch
from torch.profiler import ProfilerActivity, profile

N, PRODUCTS = 4096, 10
torch.manual_seed(0)
a = torch.randn(N, N, device="cuda").to(torch.float8_e4m3fn)
b = torch.randn(N, N, device="cuda").to(torch.float8_e4m3fn).t()
one = torch.ones((), device="cuda")


def product():
    return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


c = product()
torch.cuda.synchronize()
with profile(activities=[ProfilerActivity.CUDA]) as trace:
    for _ in range(PRODUCTS):
        product()
    torch.cuda.synchronize()
names = [event.name for event in trace.events()]
memsets = sum(name.startswith("Memset (") for name in names)
kernels = sorted({name for name in names if name.startswith("nvjet")})
print(memsets, hashlib.sha256(c.view(torch.int16).cpu().numpy().tobytes()).hexdigest()[:16], *kernels)
PYTHON
read -r with with_bits with_kernels < <(env -u CUBLASLT_WORKSPACE_SIZE "$folder/venv/bin/python" "$folder/products.py")
read -r without without_bits without_kernels < <(CUBLASLT_WORKSPACE_SIZE=0 "$folder/venv/bin/python" "$folder/products.py")
echo "CUBLASLT_WORKSPACE_SIZE unset   $with_kernels   memsets $with of 10 products"
echo "CUBLASLT_WORKSPACE_SIZE=0       $without_kernels   memsets $without of 10 products"
[[ $with -eq 10 && $without -eq 0 && $with_bits == "$without_bits" ]] || { echo "the behaviour has changed" >&2; exit 1; }
