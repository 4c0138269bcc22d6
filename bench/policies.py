#!/usr/bin/env python3
"""Trains the demo's model once for every way to keep its numbers and prints one table: what each costs and what it saves.

  bench/policies.py --text BOOK.txt            the demo as it is
  bench/policies.py --text BOOK.txt --iters 50 a short look

All runs see the same text in the same order. The last runs are the references: nothing quantized but activations in bf16, and
nothing quantized at all. Columns:

  held-out loss        nats per token at the end, over the same sequences for all; in fp32, whatever training used
  against fp32         its difference to the run without any quantization
  saved bytes          of the activations kept for backward, per token and layer; and in per cent of the bf16 policy's
  quantized kinds      the same of those tensors alone that the policy keeps in fewer than 16 bits, in per cent of what the
                       bf16 policy keeps of the same
  bytes per parameter  weights, corrections or fp32 master, main gradients and moments
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = {  # name: flags of `agoq train`
    "agoq": ["--activation-policy", "agoq"],
    "paper": ["--activation-policy", "paper"],
    "fp8": ["--activation-policy", "fp8"],
    "bf16": ["--activation-policy", "bf16"],
    "fp32 baseline": ["--baseline", "fp32"],
}
UNQUANTIZED = ("none", "bf16", "fp32")


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for name, flags in RUNS.items():
            print(f"training: {name}", file=sys.stderr, flush=True)
            results[name] = [train(options, flags, seed, Path(folder) / f"{name}-{seed}") for seed in seeds(options)]
    print_table(results, options)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="what to train on, UTF-8")
    parser.add_argument("--config", default="examples/demo.toml", help="settings of the runs (default: %(default)s)")
    parser.add_argument("--iters", type=int, default=300, help="training steps of each (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, whose losses are averaged (default: %(default)s)")
    parser.add_argument("--eval-iters", type=int, default=40, help="micro-batches of the held-out loss (default: %(default)s)")
    parser.add_argument("--program", default="build/agoq", help="(default: %(default)s)")
    return parser.parse_args()


def seeds(options):
    return range(1234, 1234 + options.seeds)


def train(options, flags, seed, run):
    warmup = min(30, options.iters // 10)
    command = [options.program, "train", "--config", options.config, "--data-path", options.text, "--save", str(run),
               "--train-iters", str(options.iters), "--lr-warmup-iters", str(warmup), "--seed", str(seed),
               "--eval-interval", str(options.iters), "--eval-iters", str(options.eval_iters),
               "--save-interval", "0", "--sample-tokens", "0", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return {name: json.loads((run / f"{name}.json").read_text()) for name in ("summary", "memory", "recipe")}


def saved(result):
    """Bytes of the saved tensors by name, over all layers and tokens."""
    prefix = "saved "
    return {owner[len(prefix):]: n for owner, n in result["memory"]["allocated"].items() if owner.startswith(prefix)}


def quantized_kinds(result):
    """Names of the tensors that the run keeps in fewer than 16 bits, in all layers alike."""
    return [name for name, codec in result["recipe"]["layers"][0].items() if codec not in UNQUANTIZED]


def percent(part, whole):
    return f"{100 * part / whole:.1f}%" if whole else "-"


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def print_table(results, options):
    reference = results["bf16"][0]
    exact = mean(r["summary"]["valid_loss"] for r in results["fp32 baseline"])
    rows = [["run", "held-out loss", "against fp32", "saved bytes per token, layer", "of bf16's", "quantized kinds, of bf16's",
             "bytes per parameter", "tokens/s"]]
    for name, runs in results.items():
        first = runs[0]
        loss = mean(r["summary"]["valid_loss"] for r in runs)
        kinds = quantized_kinds(first)
        rows.append([
            name, f"{loss:.4f}", f"{100 * (loss / exact - 1):+.2f}%",
            f"{first['summary']['saved_bytes_per_token_layer']:.0f}",
            percent(sum(saved(first).values()), sum(saved(reference).values())),
            percent(sum(saved(first).get(k, 0) for k in kinds), sum(saved(reference)[k] for k in kinds)),
            f"{first['summary']['bytes_per_parameter']:.2f}",
            f"{mean(r['summary']['tokens_per_second'] for r in runs):.0f}"])
    print(markdown(rows))
    print(f"\n{options.iters} steps of {options.config}; "
          f"{'one run' if options.seeds == 1 else f'mean of {options.seeds} runs'} each.")


def markdown(rows):
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


if __name__ == "__main__":
    main()
