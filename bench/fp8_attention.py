#!/usr/bin/env python3
"""cuDNN's attention in 8-bit floats beside that in bf16: time, and error of the same inputs, on one GPU.

  bench/fp8_attention.py                                    # LLaMA3-8B: 32 query heads, 8 of keys and values, 8192 tokens
  bench/fp8_attention.py --kv-heads 32 --json results.json

q, k, v and dO are drawn from a Gaussian and rounded to bf16; in "keys with a mean" a number per head and channel, of deviation
--mean, is added to all keys, as keys of trained models have one. Errors are ||x - reference|| / ||reference|| against attention
in fp64 of the same bf16 inputs. 8-bit inputs are e4m3 with one scale a tensor, gradients e4m3 or e5m2. On Hopper cuDNN writes o,
dq, dk and dv in 8-bit floats only, with scales that must be known before; here they are those of a first run on the same inputs, which
is the best that a delayed scale can be. Casts are not timed.

Needs PyTorch and the package nvidia-cudnn-frontend (tried with 1.15).
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import cudnn
import support
import torch

FLOAT = cudnn.data_type.FLOAT
TYPES = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float32: FLOAT, torch.float8_e4m3fn: cudnn.data_type.FP8_E4M3,
         torch.float8_e5m2: cudnn.data_type.FP8_E5M2}
GRADIENTS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
NAMES = ("o", "dq", "dk", "dv")


@dataclasses.dataclass
class Inputs:
    """[S, heads, D] in bf16, as layers have them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    do: torch.Tensor


def main():
    options = parse_options()
    rows = []
    for case, mean in (("mean 0", 0.0), ("keys with a mean", options.mean)):
        inputs = draw(options, mean)
        exact = reference(inputs)
        for name, attention in candidates(inputs):
            row = {"case": case, "candidate": name, **measure(attention, exact, options)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(f"\n{support.describe_gpus()}, cuDNN {cudnn.backend_version()}\n\n{table(rows)}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--mean", type=float, default=2.0, help="deviation of the means of keys")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each direction, back to back")
    parser.add_argument("--json", help="write the figures there too")
    return parser.parse_args()


def draw(options, mean):
    source = torch.Generator("cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, device="cuda", generator=source)

    heads, kv_heads, dim, tokens = options.heads, options.kv_heads, options.head_dim, options.seq_length
    q, k, v, do = (normal(tokens, n, dim) for n in (heads, kv_heads, kv_heads, heads))
    k += mean * normal(kv_heads, dim)
    return Inputs(*(x.bfloat16() for x in (q, k, v, do)))


def reference(x):
    """o, dq, dk, dv in fp64, one head at a time."""
    tokens, heads, dim = x.q.shape
    group = heads // x.k.shape[1]
    o, dq = (torch.empty_like(x.q, dtype=torch.float64) for _ in range(2))
    dk, dv = (torch.zeros_like(x.k, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").triu(1)
    for h in range(heads):
        q, k, v, do = (t[:, i].double() for t, i in ((x.q, h), (x.k, h // group), (x.v, h // group), (x.do, h)))
        p = (q @ k.T * dim**-0.5).masked_fill_(mask, -torch.inf).softmax(-1)
        o[:, h] = p @ v
        ds = p * (do @ v.T - (do * o[:, h]).sum(-1, keepdim=True)) * dim**-0.5
        dq[:, h] = ds @ k
        dk[:, h // group] += ds.T @ q
        dv[:, h // group] += p.T @ do
    return o, dq, dk, dv


def candidates(x):
    """Names, and functions that build an attention or raise where cuDNN has none."""
    yield "bf16", lambda: Bf16Attention(x)
    for name, kind in GRADIENTS.items():
        yield f"e4m3, gradients {name}", lambda kind=kind: Fp8Attention(x, kind)


class Graph:
    """A graph of cuDNN's of one operation. Tensors are [S, heads, D] in memory and (1, heads, S, D) to cuDNN."""

    def __init__(self):
        self.handle = cudnn.create_handle()
        cudnn.set_stream(self.handle, torch.cuda.current_stream().cuda_stream)
        self.graph = cudnn.pygraph(intermediate_data_type=FLOAT, compute_data_type=FLOAT, handle=self.handle)
        self.buffers = {}

    def input(self, x):
        dim, stride = layout(x)
        tensor = self.graph.tensor(dim=dim, stride=stride, data_type=TYPES[x.dtype])
        self.buffers[tensor] = x.data_ptr()
        return tensor

    def output(self, tensor, x):
        dim, stride = layout(x)
        tensor.set_output(True).set_dim(dim).set_stride(stride).set_data_type(TYPES[x.dtype])
        self.buffers[tensor] = x.data_ptr()

    def build(self):
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        self.graph.check_support()
        self.graph.build_plans()
        self.workspace = torch.empty(max(1, self.graph.get_workspace_size()), dtype=torch.uint8, device="cuda")
        return self

    def __call__(self):
        self.graph.execute(self.buffers, self.workspace, handle=self.handle)


def layout(x):
    if x.numel() == 1:
        return (1, 1, 1, 1), (1, 1, 1, 1)
    if x.dim() == 2:  # the softmax's logarithms [heads, S]
        heads, tokens = x.shape
        return (1, heads, tokens, 1), (heads * tokens, tokens, 1, 1)
    tokens, heads, dim = x.shape
    return (1, heads, tokens, dim), (tokens * heads * dim, dim, heads * dim, 1)


class Bf16Attention:
    def __init__(self, x):
        self.inputs = x
        self.outputs = [torch.empty_like(t) for t in (x.q, x.q, x.k, x.v)]
        o, dq, dk, dv = self.outputs
        self.stats = torch.empty(x.q.shape[1], x.q.shape[0], device="cuda")
        settings = {"attn_scale": x.q.shape[-1] ** -0.5, "use_causal_mask": True}
        graph = Graph()
        out, stats = graph.graph.sdpa(*(graph.input(t) for t in (x.q, x.k, x.v)), is_inference=False, **settings)
        graph.output(out, o)
        graph.output(stats, self.stats)
        self.forward = graph.build()
        graph = Graph()
        gradients = graph.graph.sdpa_backward(*(graph.input(t) for t in (x.q, x.k, x.v, o, x.do, self.stats)), **settings)
        for tensor, t in zip(gradients, (dq, dk, dv)):
            graph.output(tensor, t)
        self.backward = graph.build()

    def results(self):
        return self.outputs


class Fp8Attention:
    """Scales of what it computes itself are found by a first run with all of them 1."""

    def __init__(self, x, gradient_type):
        self.scale = {name: number(1.0) for name in ("s", "o", "dp", "dq", "dk", "dv")}
        self.inverse = {name: number(1.0) for name in self.scale}
        self.largest = {name: number(0.0) for name in self.scale}
        self.types = {"s": torch.float8_e4m3fn, "o": torch.float8_e4m3fn, **{name: gradient_type for name in ("dp", "dq", "dk", "dv")}}
        self.codes = {}
        for name, t, kind in (("q", x.q, torch.float8_e4m3fn), ("k", x.k, torch.float8_e4m3fn), ("v", x.v, torch.float8_e4m3fn),
                              ("do", x.do, gradient_type)):
            scale = torch.finfo(kind).max / t.float().abs().max()
            self.codes[name] = (t.float() * scale).to(kind)
            self.inverse[name] = number(1 / scale)
        for name, like in (("o", x.q), ("dq", x.q), ("dk", x.k), ("dv", x.v)):
            self.codes[name] = torch.empty_like(like, dtype=self.types[name])
        self.stats = torch.empty(x.q.shape[1], x.q.shape[0], device="cuda")
        settings = {"attn_scale": x.q.shape[-1] ** -0.5, "use_causal_mask": True}
        self.forward, self.backward = self.build_forward(settings), self.build_backward(settings)
        self.calibrate()

    def build_forward(self, settings):
        graph = Graph()
        inputs = {name: graph.input(self.codes[name]) for name in ("q", "k", "v")}
        scales = {f"descale_{name}": graph.input(self.inverse[name]) for name in ("q", "k", "v", "s")}
        scales |= {f"scale_{name}": graph.input(self.scale[name]) for name in ("s", "o")}
        o, stats, *largest = graph.graph.sdpa_fp8(**inputs, **scales, is_inference=False, **settings)
        graph.output(o, self.codes["o"])
        graph.output(stats, self.stats)
        self.output_largest(graph, largest, ("s", "o"))
        return graph.build()

    def build_backward(self, settings):
        graph = Graph()
        inputs = {name: graph.input(self.codes[name]) for name in ("q", "k", "v", "o")}
        inputs |= {"dO": graph.input(self.codes["do"]), "stats": graph.input(self.stats)}
        scales = {f"descale_{spelled(name)}": graph.input(self.inverse[name]) for name in ("q", "k", "v", "o", "do", "s", "dp")}
        scales |= {f"scale_{spelled(name)}": graph.input(self.scale[name]) for name in ("s", "dq", "dk", "dv", "dp")}
        dq, dk, dv, *largest = graph.graph.sdpa_fp8_backward(**inputs, **scales, **settings)
        for tensor, name in ((dq, "dq"), (dk, "dk"), (dv, "dv")):
            graph.output(tensor, self.codes[name])
        self.output_largest(graph, largest, ("dq", "dk", "dv", "dp"))
        return graph.build()

    def output_largest(self, graph, tensors, names):
        for tensor, name in zip(tensors, names, strict=True):
            graph.output(tensor, self.largest[name])

    def calibrate(self):
        """Forward first: backward reads its o."""
        for run, names in ((self.forward, ("s", "o")), (self.backward, ("dp",)), (self.backward, ("dq", "dk", "dv"))):
            run()
            for name in names:
                self.scale[name].copy_(torch.finfo(self.types[name]).max / self.largest[name])
                self.inverse[name].copy_(1 / self.scale[name])
            self.forward()

    def results(self):
        return [self.codes[name].double() * self.inverse[name].double() for name in NAMES]


def number(x):
    return torch.full((1,), float(x), device="cuda")


def spelled(name):
    """As cuDNN's frontend spells gradients: dQ."""
    return name if len(name) == 1 else "d" + name[1:].upper()


def measure(build, exact, options):
    try:
        attention = build()
    except Exception as error:  # the frontend has an exception for each kind of refusal
        return {"failed": " ".join(str(error).split())[:300]}
    attention.forward()
    attention.backward()
    torch.cuda.synchronize()
    errors = {name: relative_error(x, e) for name, x, e in zip(NAMES, attention.results(), exact)}
    return {"forward_ms": milliseconds(attention.forward, options.seconds), "backward_ms": milliseconds(attention.backward, options.seconds),
            **errors, **scales_of(attention)}


def relative_error(x, exact):
    return (torch.linalg.vector_norm(x.double() - exact) / torch.linalg.vector_norm(exact)).item()


def scales_of(attention):
    """What the 8-bit tensors held at the most."""
    return {f"largest {name}": x.item() for name, x in getattr(attention, "largest", {}).items()}


def milliseconds(run, seconds):
    """Median over samples of 10 runs back to back, for about so long."""
    samples, total = [], 0.0
    run()
    while total < 1e3 * seconds:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            run()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end)
        samples.append(start.elapsed_time(end) / 10)
    return statistics.median(samples)


def table(rows):
    lines = []
    for row in rows:
        name = f"{row['case']}, {row['candidate']}"
        if "failed" in row:
            lines.append([f"{name}: failed: {row['failed']}", *[""] * 6])
            continue
        lines.append([name, *(f"{row[key]:.2f}" for key in ("forward_ms", "backward_ms")), *(f"{row[key]:.4f}" for key in NAMES)])
    return support.markdown(["", "forward ms", "backward ms", *(f"error of {name}" for name in NAMES)], lines)


if __name__ == "__main__":
    main()
