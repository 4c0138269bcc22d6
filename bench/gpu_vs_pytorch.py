#!/usr/bin/env python3
"""Training speed and memory on a GPU: AGoQ beside the strongest settings of PyTorch, the same shapes, the same card, in turn.

  bench/gpu_vs_pytorch.py                                       # 8 layers of LLaMA3-8B, 8192 tokens
  bench/gpu_vs_pytorch.py --cases all --json results.json       # the table of docs/benchmarks.md
  bench/gpu_vs_pytorch.py --cases 8-layers --peers best tensorwise rowwise eager --products bf16 e4m3-rowwise
  bench/gpu_vs_pytorch.py --device cpu                          # a tiny model, to try the script

The peers (peers/pytorch.py) are transformers' LlamaForCausalLM with compiled layers, a loss whose logits exist for some tokens
at a time, the fastest of PyTorch's attentions and fused AdamW. Weights and moments are bf16, without a master: 8 bytes a
parameter, the least that PyTorch offers. Products of the layers are in bf16 ("best") or in 8-bit floats by torchao
("tensorwise" and the others named as its recipes); the head and attention stay bf16. "coat" is peers/fp8_coat.py, and
"coat-kept" the same with weights in 8-bit floats kept for backward. AGoQ trains with everything on: 4-bit activations, int8
gradients, 8-bit moments, exact fp32 master, clipping; its products are those of --products: bf16, or FORMAT-RECIPE of
--fp8-format and --fp8-recipe.

Every candidate runs in its own process, for some seconds after a warm-up, one after another for several rounds, so that
whatever the card does meets all alike. The table gives medians over the rounds that went well, how many times as fast a candidate is as
each peer, and the spread of its times over the rounds. "In use" is what the driver has given out on the card at the end of the
run, "allocated" what the program has asked for at the most. Tokens are random.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

import support
from support import ROOT

LIMIT = 600  # seconds after which a run is given up
LLAMA3 = "llama3-8b"
# Shapes that AGoQ has no preset of. OLMo-1B's with the norms of a LLaMA, which the peers have; the last tries the script.
MODELS = {
    "qwen2.5-7b": {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
                   "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
                   "rope_theta": 1e6, "tie_word_embeddings": False},
    "olmo-1b as a LLaMA": {"model_type": "llama", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192,
                           "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 24576, "rms_norm_eps": 1e-5,
                           "rope_theta": 10000.0, "tie_word_embeddings": True},
    "tiny": {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
             "rope_theta": 10000.0, "tie_word_embeddings": False}}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: str               # of MODELS, or a preset of AGoQ
    layers: int
    seq_length: int = 8192
    sequences: int = 1       # of a micro-batch; peers can have one
    micro_batches: int = 1   # of a step

    @property
    def tokens(self):
        """Of one step."""
        return self.seq_length * self.sequences * self.micro_batches

    @property
    def has_peers(self):
        return self.sequences == 1

    def config(self, agoq):
        if self.model in MODELS:
            return MODELS[self.model] | {"num_hidden_layers": self.layers}
        return support.model_config(agoq, self.model, self.layers)


CASES = {case.name: case for case in (
    Case("8 layers", LLAMA3, 8), Case("16 layers", LLAMA3, 16), Case("LLaMA3-8B", LLAMA3, 32), Case("8 layers, 32K", LLAMA3, 8, 32768),
    Case("OLMo-1B as a LLaMA", "olmo-1b as a LLaMA", 16, 24576),  # COAT's case
    Case("Qwen2.5-7B", "qwen2.5-7b", 28, 1024, sequences=16, micro_batches=8))}  # LLMQ's case, but for 32 micro-batches there


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    short: str
    settings: tuple  # of the script
    script: str = "pytorch.py"


def strongest(*more):
    return ("--state", "bf16", "--compile", *more)


PLAIN = ("--state", "bf16", "--loss", "plain", "--attention", "default")
PEERS = {
    "best": Peer("PyTorch, bf16: compiled layers, chunked loss, fastest attention", "PyTorch bf16", strongest()),
    "best-fused": Peer("PyTorch, bf16, the same with fused linears", "PyTorch bf16, fused", strongest("--fused-linears")),
    "tensorwise": Peer("PyTorch with torchao's FP8, tensorwise", "torchao tensorwise", strongest("--fp8", "tensorwise")),
    "tensorwise-fused": Peer("PyTorch with torchao's FP8, tensorwise, fused linears", "torchao tensorwise, fused",
                             strongest("--fp8", "tensorwise", "--fused-linears")),
    "rowwise": Peer("PyTorch with torchao's FP8, rowwise", "torchao rowwise", strongest("--fp8", "rowwise")),
    "rowwise-gw": Peer("PyTorch with torchao's FP8, rowwise with bf16 dW", "torchao rowwise, bf16 dW",
                       strongest("--fp8", "rowwise_with_gw_hp")),
    "coat": Peer("COAT's layers, PyTorch's AdamW", "COAT", ("--compile",), "fp8_coat.py"),
    "coat-kept": Peer("COAT's layers, 8-bit weights kept, PyTorch's AdamW", "COAT, weights kept", ("--compile", "--keep-weights"), "fp8_coat.py"),
    "compile": Peer("PyTorch, plain, torch.compile", "PyTorch compiled", (*PLAIN, "--compile")),
    "eager": Peer("PyTorch, plain", "PyTorch plain", PLAIN),
    "checkpoint": Peer("PyTorch, plain, gradient checkpointing", "PyTorch checkpointed", (*PLAIN, "--recompute", 1)),
}


@dataclasses.dataclass(frozen=True)
class Agoq:
    name: str
    settings: tuple  # of `agoq bench step`


def agoq_candidates(options):
    for products in options.products:
        if products == "bf16":
            yield Agoq("AGoQ, bf16 products", ())
        else:
            fp8_format, recipe = products.split("-")
            yield Agoq(f"AGoQ, FP8 products, {fp8_format} {recipe}", ("--fp8-format", fp8_format, "--fp8-recipe", recipe))
    for policy in options.policies:
        yield Agoq(f"AGoQ, bf16 products, policy {policy}", ("--activation-policy", policy))


def main():
    options = parse_options()
    results = {}
    for case in options.cases:
        candidates = [*(PEERS[peer] for peer in options.peers if case.has_peers), *agoq_candidates(options)]
        for _ in range(options.rounds):
            for candidate in candidates:
                outcome = run(candidate, case, options)
                results.setdefault((case, candidate), []).append(outcome)
                print(f"{case.name}, {candidate.name}: {outcome}", file=sys.stderr, flush=True)
    rows = {key: medians(rounds) for key, rounds in results.items()}
    print(conditions(options))
    print(tables(rows, options))
    if options.json:
        text = json.dumps([{"case": case.name, "candidate": candidate.name, **row} for (case, candidate), row in rows.items()], indent=1)
        Path(options.json).write_text(text + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {name.lower().replace(", ", "-").replace(" ", "-"): case for name, case in CASES.items()}
    parser.add_argument("--cases", nargs="+", choices=["all", *names], default=["8-layers"],
                        help="8-layers and 16-layers give the cost of one more")
    parser.add_argument("--layers", type=int, nargs="+", help="of LLaMA3-8B at --seq-length, instead of --cases")
    parser.add_argument("--seq-length", type=int, default=8192, help="with --layers")
    parser.add_argument("--seconds", type=float, default=12, help="of each candidate in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["best", "tensorwise"])
    parser.add_argument("--products", nargs="*", type=products, default=["bf16", "e4m3-rowwise"],
                        help="of AGoQ: bf16, or as in hybrid-tensorwise")
    parser.add_argument("--policies", nargs="*", default=[], help="activation policies of AGoQ to run too, with bf16 products, e.g. bf16")
    parser.add_argument("--coat-packages", help="a folder with fp8-coat and the transformers that it needs (peers/fp8_coat.py)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--agoq", default="build/agoq", help="the program, from the repository's root")
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    support.check_program(options.agoq)
    if options.device == "cpu":
        options.cases = [Case(f"tiny, {layers} layers", "tiny", layers, 64) for layers in (2, 4)]
    elif options.layers:
        options.cases = [Case(f"{layers} layers", LLAMA3, layers, options.seq_length) for layers in options.layers]
    else:
        options.cases = list(names.values()) if "all" in options.cases else [names[name] for name in options.cases]
    return options


def products(text):
    fp8_format, _, recipe = text.partition("-")
    if text != "bf16" and (fp8_format not in ("e4m3", "hybrid") or not recipe):
        raise argparse.ArgumentTypeError(f"{text} is neither bf16 nor e4m3-RECIPE nor hybrid-RECIPE")
    return text


def run(candidate, case, options):
    """The figures of one round, or {"failed": why}."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(case.config(options.agoq)))
        one = run_peer if isinstance(candidate, Peer) else run_agoq
        figures = one(candidate, case, config, options)
    loss = figures.get("loss", 0.0)
    return figures if loss is not None and math.isfinite(loss) else {"failed": f"a loss of {loss}"}


def run_agoq(candidate, case, config, options):
    out = config.parent / "step.json"
    command = [options.agoq, "bench", "step", "--device", options.device, "--model-config", config, *candidate.settings,
               "--seq-length", case.seq_length, "--micro-batch-size", case.sequences,
               "--global-batch-size", case.sequences * case.micro_batches, "--seconds", options.seconds, "--json", out]
    with support.Ranks(command, 1) as ranks:
        if ranks.wait(LIMIT) != [0]:
            return {"failed": ranks.failure()}
    step = json.loads(out.read_text())["steps"][0]
    return {"ms": step["ms"], "gib": step.get("driver_bytes", 0) / support.GIB, "allocated_gib": step["planned_bytes"] / support.GIB,
            "loss": step["loss"]}


def run_peer(candidate, case, config, options):
    arguments = ["--model", config, "--seq-lengths", case.seq_length, "--micro-batches", case.micro_batches,
                 "--seconds", options.seconds, "--device", options.device, *candidate.settings]
    packages = options.coat_packages if candidate.script == "fp8_coat.py" else None
    result = support.run_worker(ROOT / "bench/peers" / candidate.script, arguments, world=1, seconds=LIMIT, packages=packages)[-1]
    if "ms" not in result:
        return {"failed": result.get("out_of_memory") or result["failed"]}
    return {"ms": result["ms"], "gib": result.get("in_use_gib", 0), "allocated_gib": result.get("allocated_gib", 0),
            "loss": result["loss"]}


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
    return f"{options.rounds} rounds of {options.seconds:g} s; {support.describe_gpus()}\n"


def tables(rows, options):
    parts = [f"{shape(case)}:\n\n{table(case, rows, options)}" for case in options.cases]
    return "\n\n".join(parts + failed_rounds(rows) + one_more_layer(rows, options))


def shape(case):
    batch = f", {case.sequences} sequences a micro-batch, {case.micro_batches} of these a step" if case.tokens > case.seq_length else ""
    return f"{case.name}, S={case.seq_length}{batch}"


def table(case, rows, options):
    """One row a candidate; its speed over that of each peer."""
    peers = [PEERS[peer] for peer in options.peers if case.has_peers]
    header = ["", "tokens/s", "ms/step", "in use GiB", "allocated GiB", *(f"x {peer.short}" for peer in peers), "spread"]
    lines = []
    for candidate, row in ((candidate, row) for (of, candidate), row in rows.items() if of == case):
        if "failed" in row:
            lines.append([f"{candidate.name}: failed: {row['failed']}", *[""] * (len(header) - 1)])
            continue
        lines.append([candidate.name, f"{1e3 * case.tokens / row['ms']:.0f}", f"{row['ms']:.1f}", f"{row['gib']:.1f}",
                      f"{row['allocated_gib']:.1f}", *(over(rows[case, peer], row) for peer in peers), f"{100 * row['spread']:.1f}%"])
    return support.markdown(header, lines)


def over(peer, row):
    return "" if "failed" in peer else f"{peer['ms'] / row['ms']:.3f}"


def failed_rounds(rows):
    """Of candidates that a table has figures of."""
    lines = [f"- {case.name}, {candidate.name}: a round failed: {why}" for (case, candidate), row in rows.items() if "failed" not in row
             for why in row["failures"]]
    return ["\n".join(lines)] if lines else []


def one_more_layer(rows, options):
    """From each case to the next one, if they differ in layers alone."""
    parts = []
    for few, many in zip(options.cases, options.cases[1:]):
        if few.layers == many.layers or dataclasses.replace(many, name=few.name, layers=few.layers) != few:
            continue
        lines = []
        for candidate in (candidate for case, candidate in rows if case == few):
            a, b = rows[few, candidate], rows[many, candidate]
            if "failed" not in a and "failed" not in b:
                ms, gib = ((b[key] - a[key]) / (many.layers - few.layers) for key in ("ms", "gib"))
                lines.append([candidate.name, f"{ms:.2f}", f"{gib:.3f}"])
        parts.append(f"One more layer, {few.name} to {many.name}:\n\n" + support.markdown(["", "ms", "in use GiB"], lines))
    return parts


if __name__ == "__main__":
    main()
