#!/usr/bin/env python3
"""Training speed on the CPU: AGoQ beside PyTorch, the same model, the same batch, the same threads, in turn.

  pip install torch transformers
  bench/cpu_vs_pytorch.py --threads 2

PyTorch runs transformers' LlamaForCausalLM in fp32, eager, with scaled_dot_product_attention, gradient clipping and fused
AdamW; AGoQ runs as bench/cpu_step does: quantized as by default, and all in fp32 as PyTorch. Every round runs each of them
in its own process, one after another, so that whatever else the machine does meets all alike; the table gives medians over
the rounds and, for the ratio, also its lowest and highest round. Tokens are random. The two call different BLAS libraries
(PyTorch's own often MKL, which uses less than an AMD processor has), so the speed of a large matrix product by itself stands
beside each: OPENBLAS_CORETYPE=Haswell takes AVX-512 away from AGoQ's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"agoq": "AGoQ, quantized", "fp32-baseline": "AGoQ, all fp32"}
# The shape of --model-config demo.
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
    "vocab_size": 257, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def main():
    options = parse_options()
    if options.torch_worker:
        return print(json.dumps(time_pytorch(options)))
    with tempfile.TemporaryDirectory() as folder:
        options.model_config = options.model_config or str(Path(folder) / "config.json")
        if not Path(options.model_config).exists():
            Path(options.model_config).write_text(json.dumps(MODEL))
        rounds = []
        for number in range(options.rounds):
            rounds.append(one_round(options))
            print(f"round {number + 1}/{options.rounds}: " + ", ".join(f"{name} {speed:.0f} tokens/s" for name, (speed, _) in rounds[-1].items()),
                  file=sys.stderr, flush=True)
    print_table(rounds, options)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-config", help="a config.json (default: the shape of the preset demo)")
    parser.add_argument("--seq-length", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--global-batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: all cores)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each in a round that count (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: %(default)s)")
    parser.add_argument("--program", default="build/bench/cpu_step", help="(default: %(default)s)")
    parser.add_argument("--torch-worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


REFERENCE = "PyTorch, fp32"


def one_round(options):
    """Of each: tokens/s, and GFLOP/s of its matrix product."""
    shared = [f"--{name}={getattr(options, name.replace('-', '_'))}"
              for name in ("model-config", "seq-length", "micro-batch-size", "global-batch-size", "threads", "steps", "warmup")]
    speeds = {}
    for variant, name in VARIANTS.items():
        report = run([options.program, *shared, f"--variants={variant}", "--json"])
        speeds[name] = (report["variants"][0]["tokens_per_second"], report["sgemm_gflops"])
    report = run([sys.executable, __file__, *shared, "--torch-worker"])
    speeds[REFERENCE] = (report["tokens_per_second"], report["sgemm_gflops"])
    return speeds


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": thread_count(command)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def thread_count(command):
    return next(word.split("=")[1] for word in command if word.startswith("--threads="))


def time_pytorch(options):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    config = LlamaConfig.from_json_file(options.model_config)
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).float()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=3e-4, betas=(0.9, 0.95), fused=True)
    shape = (options.micro_batch_size, options.seq_length)
    batches = [torch.randint(config.vocab_size, shape) for _ in range(options.global_batch_size // options.micro_batch_size)]

    seconds = []
    for _ in range(options.warmup + options.steps):
        start = time.perf_counter()
        for tokens in batches:
            (model(input_ids=tokens, labels=tokens, use_cache=False).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[options.warmup:])
    return {"tokens_per_second": options.global_batch_size * options.seq_length / step, "sgemm_gflops": sgemm_gflops()}


def sgemm_gflops():
    """As AGoQ measures its own: the best of a few square products."""
    import torch

    n = 1024
    a, b = torch.ones(n, n), torch.ones(n, n)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds) / 1e9


def print_table(rounds, options):
    print("| training | tokens/s | against PyTorch | lowest and highest round | sgemm by itself, GFLOP/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in rounds[0]:
        ratios = [r[name][0] / r[REFERENCE][0] for r in rounds]
        spread = "" if name == REFERENCE else f"{min(ratios):.2f} to {max(ratios):.2f}"
        speed, sgemm = (statistics.median(r[name][i] for r in rounds) for i in (0, 1))
        print(f"| {name} | {speed:.0f} | {statistics.median(ratios):.2f} | {spread} | {sgemm:.0f} |")
    print(f"\n{options.threads} threads, {options.global_batch_size} sequences of {options.seq_length} tokens a step in "
          f"micro-batches of {options.micro_batch_size}; medians of {options.rounds} rounds of {options.steps} steps; {versions()}.")


def versions():
    from importlib.metadata import version

    return f"PyTorch {version('torch')}, transformers {version('transformers')}"


if __name__ == "__main__":
    main()
