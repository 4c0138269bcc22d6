#!/usr/bin/env python3
"""Make the products of 8-bit floats that the C++ tests compare with: PyTorch's torch._scaled_mm.

    pip install -r python/requirements-reference.txt
    python tools/make_product_goldens.py [--output tests/ops/linear/scaled_products.safetensors] [CASE ...]

Scales per tensor and per row run on a CPU, per row not in PyTorch 2.11; blocks of 128 need a GPU (Hopper, CUDA
12.9). An existing file keeps the cases that are not named, or that cannot be made here. For every case NAME:
  NAME.a [m, k], NAME.b [n, k]   codes, uint8; a NAME is FORMAT_GRANULARITY of a, a point, and those of b
  NAME.a_scale, NAME.b_scale     fp32 multipliers, laid out as src/ops/linear/operand.h says
  NAME.c [m, n]                  fp32: the product by PyTorch
and `e4m3`, `e5m2` [256]: the value of every code.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
BLOCK = 128


@dataclass
class Case:
    """One product: the formats and granularities of its operands, and its sizes."""

    a: str
    b: str
    a_scales: str
    b_scales: str
    m: int
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"{self.a}_{self.a_scales}.{self.b}_{self.b_scales}"

    @property
    def in_blocks(self) -> bool:
        return "128" in self.a_scales


# PyTorch multiplies e5m2 by e5m2 on no GPU, so no case has both.
CASES = [Case(a, b, scales, scales, 40, 24, 272)
         for a, b in (("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3")) for scales in ("tensor", "row")]
# k is 4 blocks: PyTorch 2.11 refuses scales of 128 x 128 blocks in rows padded to 4, which cuBLASLt reads.
CASES += [Case("e4m3", "e4m3", a, b, 144, 144, 512)
          for a, b in (("1x128", "1x128"), ("1x128", "128x128"), ("128x128", "1x128"))]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def group_of(x: torch.Tensor, scales: str) -> tuple[int, int]:
    """How many rows, and how many numbers along k, share a scale."""
    return {"tensor": tuple(x.shape), "row": (1, x.shape[1]), "1x128": (1, BLOCK), "128x128": (BLOCK, BLOCK)}[scales]


def amax_of(x: torch.Tensor, scales: str) -> torch.Tensor:
    """The largest magnitude of each group, as [rows of groups, groups along k]."""
    rows, k = x.shape
    height, width = group_of(x, scales)
    padded = torch.zeros(ceil_div(rows, height) * height, ceil_div(k, width) * width)
    padded[:rows, :k] = x.abs()
    return padded.view(-1, height, padded.shape[1] // width, width).amax((1, 3))


def spread(scale: torch.Tensor, x: torch.Tensor, scales: str) -> torch.Tensor:
    """The scale of every number of x."""
    rows, k = x.shape
    height, width = group_of(x, scales)
    return scale.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :k]


def operand(fmt: str, scales: str, rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and scales [rows of groups, groups along k] that are no powers of two. Rows differ much in size."""
    x = torch.randn(rows, k) * torch.logspace(-3, 3, rows)[torch.randperm(rows), None] + 0.5
    scale = amax_of(x, scales) / torch.finfo(FORMATS[fmt]).max
    limit = torch.finfo(FORMATS[fmt]).max
    return (x / spread(scale, x, scales)).clamp(-limit, limit).to(FORMATS[fmt]), scale


def as_laid_out(scale: torch.Tensor, scales: str) -> torch.Tensor:
    """As src/ops/linear/operand.h lays them out."""
    if scales in ("tensor", "row"):
        return scale.flatten()
    if scales == "1x128":
        return scale.t().contiguous()
    return torch.nn.functional.pad(scale, (0, -scale.shape[1] % 4))


def as_pytorch_takes(scale: torch.Tensor, scales: str, second: bool) -> torch.Tensor:
    """On a GPU, of a times bᵀ: rows run fastest for 1x128, k does in rows padded to 4 for 128x128."""
    if scales == "tensor":
        return scale.squeeze()
    if scales == "row":
        return scale.t().contiguous() if second else scale
    laid_out = as_laid_out(scale, scales)
    view = laid_out.t() if scales == "1x128" else laid_out[:, : scale.shape[1]]
    return view.t() if second else view


def product(case: Case, device: str) -> dict[str, torch.Tensor]:
    a, a_scale = operand(case.a, case.a_scales, case.m, case.k)
    b, b_scale = operand(case.b, case.b_scales, case.n, case.k)
    dtype = torch.bfloat16 if case.in_blocks else torch.float32
    c = torch._scaled_mm(a.to(device), b.to(device).t(),
                         scale_a=as_pytorch_takes(a_scale.to(device), case.a_scales, False),
                         scale_b=as_pytorch_takes(b_scale.to(device), case.b_scales, True), out_dtype=dtype)
    return {"a": a.view(torch.uint8), "a_scale": as_laid_out(a_scale, case.a_scales),
            "b": b.view(torch.uint8), "b_scale": as_laid_out(b_scale, case.b_scales), "c": c.float().cpu()}


def read_cases(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        return {}
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tests/ops/linear/scaled_products.safetensors"))
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all, unless some are named")
    args = parser.parse_args()

    kept = read_cases(args.output)
    tensors = {fmt: torch.arange(256, dtype=torch.uint8).view(dtype).float() for fmt, dtype in FORMATS.items()}
    for seed, case in enumerate(CASES):
        named = not args.cases or case.name in args.cases
        if not named or (case.in_blocks and not torch.cuda.is_available()):
            made = {key: kept[f"{case.name}.{key}"] for key in ("a", "a_scale", "b", "b_scale", "c")
                    if f"{case.name}.{key}" in kept}
            print(f"{case.name}: {'kept as it was' if made else 'left out'}{', since it needs a GPU' if named else ''}")
        else:
            torch.manual_seed(seed)
            made = product(case, "cuda" if case.in_blocks else "cpu")
        tensors |= {f"{case.name}.{key}": tensor.contiguous() for key, tensor in made.items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.output, metadata={"torch": torch.__version__})
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
