#!/usr/bin/env python3
"""Training speed and memory on a GPU: AGoQ beside PyTorch, the same shapes, the same card, in turn.

  bench/gpu_vs_pytorch.py --layers 8 --seq-length 8192
  bench/gpu_vs_pytorch.py --layers 8 16 --peers eager compile checkpoint --json results.json

The peer (peers/pytorch.py) is transformers' LlamaForCausalLM in bf16 with scaled_dot_product_attention and fused AdamW whose
moments are bf16 too: it holds no fp32 master and 8 bytes a parameter, the least that PyTorch offers without further packages.
AGoQ trains with everything on: 4-bit activations, int8 gradients, 8-bit moments, exact fp32 master, clipping. Every candidate runs in
its own process, for some seconds after a warm-up, one after another for several rounds, so that whatever the card does meets all
alike. The table gives medians over the rounds that went well, each candidate's time over AGoQ's, and the spread of its times
over the rounds. Memory is what the driver has given out on the card at the end of the run. Tokens are random.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path

import support
from support import ROOT

MODEL = "llama3-8b"
LIMIT = 600  # seconds after which a run is given up


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    settings: tuple  # of peers/pytorch.py


PLAIN = ("--loss", "plain", "--attention", "default")
PEERS = {"eager": Peer("PyTorch", PLAIN), "compile": Peer("PyTorch, torch.compile", (*PLAIN, "--compile")),
         "checkpoint": Peer("PyTorch, gradient checkpointing", (*PLAIN, "--recompute", 1)),
         "best": Peer("PyTorch, torch.compile, chunked loss, fastest attention", ("--compile",))}


def main():
    options = parse_options()
    results = {}
    for layers in options.layers:
        candidates = ["agoq", *options.peers, *(f"agoq-{p}" for p in options.policies)]
        for _ in range(options.rounds):
            for candidate in candidates:
                outcome = run(candidate, layers, options)
                results.setdefault((layers, candidate), []).append(outcome)
                print(f"{layers} layers, {candidate}: {outcome}", file=sys.stderr, flush=True)
    rows = {key: medians(rounds) for key, rounds in results.items()}
    print(conditions(options))
    print(table(rows, options))
    if options.json:
        text = json.dumps([{"layers": layers, "candidate": candidate, **row} for (layers, candidate), row in rows.items()], indent=1)
        Path(options.json).write_text(text + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8], help="numbers of layers; two give the cost of one more")
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=12, help="of each candidate in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["eager"])
    parser.add_argument("--policies", nargs="*", default=[], help="activation policies of AGoQ to run beside agoq, e.g. bf16")
    parser.add_argument("--agoq", default="build/agoq", help="the program, from the repository's root")
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    support.check_program(options.agoq)
    return options


def run(candidate, layers, options):
    return run_agoq(candidate, layers, options) if candidate.startswith("agoq") else run_peer(candidate, layers, options)


def run_agoq(candidate, layers, options):
    policy = candidate.partition("-")[2] or "agoq"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        command = [options.agoq, "bench", "step", "--device", "cuda", "--model-config", MODEL, "--num-layers", str(layers),
                   "--seq-length", str(options.seq_length), "--max-position-embeddings", str(max(8192, options.seq_length)),
                   "--micro-batch-size", "1", "--activation-policy", policy, "--seconds", str(options.seconds), "--json", str(out)]
        with support.Ranks(command, 1) as ranks:
            if ranks.wait(LIMIT) != [0]:
                return {"failed": ranks.failure()}
        step = json.loads(out.read_text())["steps"][0]
        return {"ms": 1e3 * options.seq_length / step["tokens_per_second"], "gib": step["driver_bytes"] / 2**30}


def run_peer(candidate, layers, options):
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(support.model_config(options.agoq, MODEL, layers)))
        arguments = ["--model", config, "--seq-lengths", options.seq_length, "--seconds", options.seconds, "--state", "bf16",
                     *PEERS[candidate].settings]
        result = support.run_worker(ROOT / "bench/peers/pytorch.py", arguments, world=1, seconds=LIMIT)[-1]
    if "ms" not in result:
        return {"failed": result.get("out_of_memory") or result["failed"]}
    return {"ms": result["ms"], "gib": result["in_use_gib"], "allocated_gib": result["allocated_gib"]}


def medians(rounds):
    """Over those that have not failed; "failures" says why the others have, "failed" that all have."""
    good = [r for r in rounds if "failed" not in r]
    failures = [r["failed"] for r in rounds if "failed" in r]
    if not good:
        return {"failed": failures[0], "failures": failures}
    row = {key: statistics.median(r[key] for r in good) for key in good[0]}
    row["spread"] = (max(r["ms"] for r in good) - min(r["ms"] for r in good)) / row["ms"]
    return row | {"failures": failures}


def conditions(options):
    return f"{MODEL} layers, S={options.seq_length}, micro-batch 1, {options.rounds} rounds of {options.seconds:g} s; {support.describe_gpus()}\n"


def table(rows, options):
    lines = ["| layers | candidate | tokens/s | ms/step | GiB | speed of AGoQ | spread |", "|---:|---|---:|---:|---:|---:|---:|"]
    for (layers, candidate), row in rows.items():
        name = PEERS[candidate].name if candidate in PEERS else candidate.replace("agoq-", "AGoQ, policy ").replace("agoq", "AGoQ")
        if "failed" in row:
            lines.append(f"| {layers} | {name} | failed: {row['failed']} | | | | |")
            continue
        ours = rows[layers, "agoq"]
        ratio = "" if candidate == "agoq" or "failed" in ours else f"{row['ms'] / ours['ms']:.3f}x"
        lines.append(f"| {layers} | {name} | {1e3 * options.seq_length / row['ms']:.0f} | {row['ms']:.1f} | {row['gib']:.1f} | {ratio} "
                     f"| {100 * row['spread']:.1f}% |")
    return "\n".join(lines + failed_rounds(rows) + one_more_layer(rows, options))


def failed_rounds(rows):
    """Of candidates that the table has figures of."""
    lines = [f"- {layers} layers, {candidate}: a round failed: {why}" for (layers, candidate), row in rows.items() if "failed" not in row
             for why in row["failures"]]
    return ["", *lines] if lines else []


def one_more_layer(rows, options):
    if len(options.layers) < 2:
        return []
    few, many = options.layers[0], options.layers[-1]
    lines = ["", f"One more layer ({few} against {many}):", ""]
    for candidate in dict.fromkeys(candidate for _, candidate in rows):
        a, b = rows[few, candidate], rows[many, candidate]
        if "failed" not in a and "failed" not in b:
            lines.append(f"- {candidate}: {(b['ms'] - a['ms']) / (many - few):.2f} ms, {(b['gib'] - a['gib']) / (many - few):.3f} GiB")
    return lines


if __name__ == "__main__":
    main()
