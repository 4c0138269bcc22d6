"""What the peers' training scripts share. Each is started once for every GPU with the variables that torchrun sets, builds
its model and then trains it for some steps at each of --seq-lengths, in this order. The first rank prints a JSON object a line:

  {"seq_length": 8192, "ms": ..., "tokens_per_second_per_gpu": ..., "loss": ..., "allocated_gib": ..., "reserved_gib": ...,
   "in_use_gib": ..., "attention": ...}         memory is that of the rank with the most
  {"seq_length": 16384, "out_of_memory": why}   by the rank that ran out of it, and the process ends

All train with random tokens, bf16 arithmetic, clipping at 1.0 and AdamW.
"""

import argparse
import json
import os
import sys
import time

import torch
import torch._dynamo
import torch.distributed as dist
import torch.nn.functional as F

GIB = 2**30
ADAM = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CLIP = 1.0
FUSED_ATTENTION = ("cudnn", "flash", "mem_efficient")


def parser(description):
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a config.json of a LLaMA model")
    p.add_argument("--seq-lengths", type=int, nargs="+", default=[8192])
    p.add_argument("--micro-batches", type=int, default=1, help="of one sequence each, in a step of a data rank")
    p.add_argument("--steps", type=int, default=4, help="that are timed")
    p.add_argument("--seconds", type=float, default=0, help="time more steps than that, for about so long")
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--attention", default="fastest", choices=["fastest", "default"], help="of PyTorch's: by timing, or what PyTorch takes")
    p.add_argument("--gpu-memory", type=float, help="GiB that PyTorch's allocator may take; context and NCCL come on top")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return p


class Worker:
    """This process among all. What it is asked to train is `config`, a dict with the keys of a config.json."""

    def __init__(self, options):
        self.options = options
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.on_gpu = options.device == "cuda"
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
            if options.gpu_memory:
                total = torch.cuda.get_device_properties(self.device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, options.gpu_memory * GIB / total))
        if "RANK" in os.environ:
            dist.init_process_group("nccl" if self.on_gpu else "gloo", device_id=self.device if self.on_gpu else None)
        torch.manual_seed(1)
        torch._dynamo.config.automatic_dynamic_shapes = False  # compiled code of its own for every length
        torch._dynamo.config.cache_size_limit = 64
        with open(options.model) as file:
            self.config = json.load(file)
        self.attention = self.choose_attention(max(options.seq_lengths)) if self.on_gpu and options.attention == "fastest" else "default"

    def run(self, build):
        """`build(worker)` makes the model and gives `step(batches)`, where batches are pairs of token and target ids [1, S], one a
        micro-batch; it returns the loss."""
        step = self.guarded(self.options.seq_lengths[0], lambda: build(self))
        for seq_length in self.options.seq_lengths:
            result = self.guarded(seq_length, lambda: self.measure(step, seq_length))
            if self.rank == 0:
                print(json.dumps(result), flush=True)
        self.finish(0)

    def guarded(self, seq_length, work):
        try:
            return work()
        except torch.OutOfMemoryError as error:
            print(json.dumps({"seq_length": seq_length, "out_of_memory": str(error).split(". GPU")[0][:200]}), flush=True)
            self.finish(1)

    @staticmethod
    def finish(status):
        """Without the ceremonies of an orderly end, in which ranks wait for each other."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def measure(self, step, seq_length):
        shape = (self.options.micro_batches, 1, seq_length)
        source = torch.Generator(self.device).manual_seed(1)  # tensor parallel ranks must have the same
        tokens, targets = (torch.randint(self.config["vocab_size"], shape, device=self.device, generator=source) for _ in range(2))
        batches = list(zip(tokens, targets))
        self.forget_memory()
        self.time(step, batches, self.options.warmup)
        steps = self.options.steps
        if self.options.seconds:
            steps = max(steps, int(self.options.seconds / self.time(step, batches, 1)[0]))
        seconds, loss = self.time(step, batches, steps)
        return {"seq_length": seq_length, "ms": 1e3 * seconds, "loss": float(loss), "attention": self.attention,
                "tokens_per_second_per_gpu": self.data_parallel() * self.options.micro_batches * seq_length / seconds / self.world, **self.memory()}

    def time(self, step, batches, steps):
        """Seconds of one, as the slowest rank has them, so that all hear the same; and the last loss."""
        self.meet()
        start = time.perf_counter()
        for _ in range(steps):
            loss = step(batches)
        self.meet()
        return self.highest([(time.perf_counter() - start) / steps])[0], loss

    def highest(self, values):
        """Over all ranks, one by one."""
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        if dist.is_initialized():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return told.tolist()

    def data_parallel(self):
        """Ranks that have tokens of their own."""
        return self.world // getattr(self.options, "tensor_parallel", 1)

    def meet(self):
        if self.on_gpu:
            torch.cuda.synchronize()
        if dist.is_initialized():
            dist.barrier()

    def forget_memory(self):
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self):
        if not self.on_gpu:
            return {}
        free, total = torch.cuda.mem_get_info()
        held = self.highest([torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB, (total - free) / GIB])
        return dict(zip(("allocated_gib", "reserved_gib", "in_use_gib"), held))

    # Attention

    def choose_attention(self, seq_length):
        """PyTorch's fastest fused attention for this shape, forward and backward, becomes the only one."""
        seconds = self.highest([self.time_attention(name, seq_length) for name in FUSED_ATTENTION])
        best = FUSED_ATTENTION[seconds.index(min(seconds))]
        enable_attention(best)
        torch.cuda.empty_cache()
        return best

    def time_attention(self, name, seq_length):
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        dim = self.config.get("head_dim") or self.config["hidden_size"] // heads
        q, k, v = (torch.randn(1, n, seq_length, dim, device=self.device, dtype=torch.bfloat16, requires_grad=True) for n in (heads, groups, groups))
        enable_attention(name)
        try:
            for _ in range(3):
                torch.cuda.synchronize()
                start = time.perf_counter()
                out = causal_attention(q, k, v)
                out.backward(torch.ones_like(out))
                torch.cuda.synchronize()
                seconds = time.perf_counter() - start
            return seconds
        except RuntimeError:
            return float("inf")


def enable_attention(name):
    for one in (*FUSED_ATTENTION, "math"):
        getattr(torch.backends.cuda, f"enable_{one}_sdp")(one == name)


def causal_attention(q, k, v):
    """q [B, Hq, S, D], k and v [B, Hkv, S, D]"""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
