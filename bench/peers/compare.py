#!/usr/bin/env python3
"""AGoQ beside Megatron-core, DeepSpeed and PyTorch FSDP2 on the GPUs of one machine: tokens/s of one GPU under a cap on its memory.

  bench/peers/compare.py --models llama3-8b llama2-13b codellama-34b --gpu-memory 48
  bench/peers/compare.py --models llama3-8b --seq-lengths 4096 16384 --peers agoq fsdp2 --all
  bench/peers/compare.py --device cpu --gpus 2                      # a tiny model, to try the script

Every peer has a ladder of settings: what it may keep, recompute or divide, sorted by the time that this is expected to
cost. A setting trains at one sequence length after another until its memory is out; from there the next one goes on. So the sweep
crosses the lengths at which a peer begins to recompute, and each length is measured with the first setting that fits. --all
runs every setting at every length and takes the best. Settings whose weights, gradients and optimizer alone are over the cap are not
run. A setting that fails ends with that; the next one goes on, unless the peer has not measured anything yet. The cap is on PyTorch's
allocator, to which context and NCCL come on top, while AGoQ's counts its context too.

A step is --micro-batches sequences on each data rank. Times are means over the timed steps: of the peers by the clock, of AGoQ as its
step_ms tells, without what lies between steps (the line of the log, checkpoints). Results are appended to --log as they come; --from-log prints the tables of such a file.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import agoq_run  # noqa: E402
import support  # noqa: E402

FOLDER = Path(__file__).resolve().parent
TINY = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}
# Share of a step's time that they are expected to cost, which orders a ladder.
COST_OF_TENSOR_PARALLEL = {1: 0.0, 2: 0.10, 4: 0.20, 8: 0.35}
COST_OF_RECOMPUTING_ALL = 0.33
COST_OF_SHARDING = {"optim": 0.0, "optim_grads": 0.02, "optim_grads_params": 0.04}  # of AGoQ, over NVLink


@dataclasses.dataclass(frozen=True)
class Setting:
    script: str
    arguments: tuple
    cost: float
    state: float  # bytes a parameter of the model on each rank, at the least

    @property
    def name(self):
        return " ".join(str(word).removeprefix("--") for word in self.arguments)


def megatron(*more, whole, divided):
    """Bytes a parameter that every data rank holds whole, and that they divide."""
    def ladder(world):
        for tensor in (t for t in COST_OF_TENSOR_PARALLEL if world % t == 0):
            for keep, cost in ((("--keep", "no-mlp"), 0.2), *recomputing(0, 0.5, 1)):
                yield Setting("megatron_core.py", ("--tensor-parallel", tensor, *more, *keep), COST_OF_TENSOR_PARALLEL[tensor] + cost,
                              whole / tensor + divided / world)
    return ladder


def deepspeed(stage):
    def ladder(world):
        state = {1: 4 + 12 / world, 2: 2 + 14 / world, 3: 16 / world}[stage]
        kernels = ("--compile",) if stage < 3 else ("--kernels", "liger")  # ZeRO-3's hooks and the compiler do not go together
        for more, cost in recomputing(0, 0.25, 0.5, 1):
            yield Setting("deepspeed_zero.py", ("--stage", stage, *kernels, *more), cost, state)
    return ladder


def fsdp2(world):
    options = [(("--keep-unsharded",), -0.05), (("--memory-budget", 0.5), 0.1), *recomputing(0, 0.25, 0.5, 1)]
    for more, cost in options:
        yield Setting("pytorch.py", ("--shard", "--compile", *more), cost, 16 / world)


def fsdp2_eager(world):
    for more, cost in recomputing(0, 0.5, 1):
        yield Setting("pytorch.py", ("--shard", "--kernels", "liger", *more), cost, 16 / world)


def recomputing(*shares):
    return [(("--recompute", share) if share else (), COST_OF_RECOMPUTING_ALL * share) for share in shares]


PEERS = {
    "megatron": ("Megatron-core without Transformer Engine, no distributed optimizer", megatron(whole=16, divided=0)),
    "megatron-distributed": ("Megatron-core without Transformer Engine, distributed optimizer", megatron("--distributed-optimizer", whole=4, divided=12)),
    "megatron-precise": ("Megatron-core, distributed and precision-aware optimizer", megatron("--distributed-optimizer", "--precision-aware", whole=4, divided=6)),
    "zero1": ("DeepSpeed ZeRO-1", deepspeed(1)),
    "zero2": ("DeepSpeed ZeRO-2", deepspeed(2)),
    "zero3": ("DeepSpeed ZeRO-3", deepspeed(3)),
    "fsdp2": ("FSDP2, torch.compile", fsdp2),
    "fsdp2-eager": ("FSDP2, eager, Liger kernels", fsdp2_eager),
}
NAMES = {"agoq": "AGoQ"} | {peer: name for peer, (name, _) in PEERS.items()}


def main():
    options = parse_options()
    if options.from_log:
        return print(tables(support.read_log(options.from_log)))
    devices = support.describe_gpus() if options.device == "cuda" else "CPU"
    log = support.Log(options.log, "bench/peers/compare.py", devices=devices, settings=f"{options.gpus} ranks, {options.gpu_memory:g} GiB each, "
                      f"{options.micro_batches} micro-batches a step on each data rank")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            comparison = Comparison(options, Path(folder), model)
            for peer in options.peers:
                for result in comparison.agoq() if peer == "agoq" else comparison.peer(peer):
                    log.add(model=model, peer=peer, **result)
    print(tables(log.entries))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama3-8b", "llama2-13b", "codellama-34b"], help="presets or config.json files")
    parser.add_argument("--seq-lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--gpu-memory", type=float, default=48, help="GiB for each GPU")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="that are timed")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240, help="a run is given up after so long for each of its lengths")
    parser.add_argument("--all", action="store_true", help="every setting at every length")
    parser.add_argument("--gpus", type=int, help="how many (default: all that CUDA_VISIBLE_DEVICES leaves)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--agoq", default="build/agoq", help="the program, from the repository's root")
    parser.add_argument("--log", help="a file of JSON lines to append to")
    parser.add_argument("--from-log", help="measure nothing, print the tables of this file")
    options = parser.parse_args()
    options.seq_lengths.sort()
    if options.from_log:
        return options
    support.check_program(options.agoq)
    if options.device == "cpu":
        options.models, options.seq_lengths, options.gpus = ["tiny"], [64, 128], options.gpus or 2
        return options
    visible = len(support.visible_gpus()) or parser.error("there is no GPU; --device cpu tries the script")
    options.gpus = options.gpus or visible
    if options.gpus > visible:
        parser.error(f"--gpus {options.gpus}: there are {visible}")
    return options


class Comparison:
    """Of one model."""

    def __init__(self, options, folder, model):
        self.options = options
        self.gpus = support.visible_gpus()[:options.gpus] if options.device == "cuda" else None
        config = TINY if model == "tiny" else support.model_config(options.agoq, model)
        self.config, self.tokens = folder / f"{Path(model).stem}.json", folder / f"{Path(model).stem}.bin"
        self.config.write_text(json.dumps(config))
        support.write_random_tokens(self.tokens, config["vocab_size"])
        self.parameters = support.plan(options.agoq, [self.config])["parameters"]

    def peer(self, peer):
        o = self.options
        ladder = sorted(PEERS[peer][1](o.gpus), key=lambda setting: setting.cost)
        fits = [s for s in ladder if s.state * self.parameters <= o.gpu_memory * support.GIB]
        left, measured = list(o.seq_lengths), False
        if not fits:
            least = min(s.state for s in ladder) * self.parameters / support.GIB
            yield {"seq_length": left[0], "out_of_memory": f"weights, gradients and optimizer alone are {least:.1f} GiB"}
        for setting in fits:
            done = self.run(setting, o.seq_lengths if o.all else left)
            yield from done
            left = [s for s in left if not any(r["seq_length"] == s and "ms" in r for r in done)]
            measured = measured or any("ms" in r for r in done)
            if any("failed" in r for r in done) and not measured or not left and not o.all:
                break

    def run(self, setting, lengths):
        """Of one length after another; the last may have failed."""
        o = self.options
        arguments = ["--model", self.config, "--seq-lengths", *lengths, "--micro-batches", o.micro_batches, "--steps", o.steps,
                     "--warmup", o.warmup, "--gpu-memory", o.gpu_memory, "--device", o.device, *setting.arguments]
        results = support.run_worker(FOLDER / setting.script, arguments, o.gpus, o.seconds * len(lengths), self.gpus)
        return [{"setting": setting.name, "seq_length": length} | result for length, result in zip([*lengths, lengths[-1]], results)]

    def agoq(self):
        for seq_length in self.options.seq_lengths:
            yield {"seq_length": seq_length} | self.agoq_at(seq_length)

    def agoq_at(self, seq_length):
        """The first setting whose plan fits, in the order of their expected costs; or why each does not: {"out_of_memory"}, or
        {"refused"} where the program takes none of them."""
        o = self.options
        lacks, refusals = [], []
        for mesh, recompute in agoq_settings(o.gpus):
            cap = ("--gpu-memory", f"{o.gpu_memory}GiB") if o.device == "cuda" else ()
            more = ("--recompute-granularity", "full") if recompute else ()
            name = mesh.name + (", all recomputed" if recompute else "")
            job = agoq_run.Job(o.agoq, self.config, self.tokens, o.device, mesh, seq_length, o.micro_batches, (*cap, *more))
            planned = job.plan()
            if "failed" in planned:
                refusals.append(f"{name}: {planned['failed']}")
                continue
            if not planned.get("fits", True):
                lacks.append(f"{name}: {(planned['total'] + planned['cuda_context_estimate']) / support.GIB:.1f} GiB")
                continue
            outcome = agoq_run.measure(job, o.steps, o.warmup, o.seconds, self.gpus)
            if "failed" in outcome:
                return {"setting": name} | outcome
            gib = {"allocated_gib": max(outcome["allocated"]) / support.GIB, "in_use_gib": max(outcome["in_use"], default=0) / support.GIB}
            return {"setting": name, "ms": outcome["ms"], "tokens_per_second_per_gpu": outcome["tokens_per_second_per_gpu"], **gib}
        return {"out_of_memory" if lacks else "refused": "; ".join(lacks + refusals)}


def agoq_settings(world):
    """(mesh, whether all is recomputed), in the order of their expected costs."""
    options = [(COST_OF_TENSOR_PARALLEL[tensor] + COST_OF_SHARDING[sharding] + COST_OF_RECOMPUTING_ALL * recompute,
                agoq_run.Mesh(tensor=tensor, data=world // tensor, sharding=sharding), recompute)
               for tensor in COST_OF_TENSOR_PARALLEL if world % tensor == 0
               for sharding in (COST_OF_SHARDING if world > tensor else ["optim"]) for recompute in (False, True)]
    return [(mesh, recompute) for _, mesh, recompute in sorted(options, key=lambda option: option[0])]


def tables(entries):
    results = [entry for entry in entries if "model" in entry]
    models = dict.fromkeys(r["model"] for r in results)
    parts = [f"## {model}\n\n{table([r for r in results if r['model'] == model])}" for model in models]
    return "\n\n".join([support.describe_conditions(entries), *parts]).strip()


def table(results):
    lengths = sorted({r["seq_length"] for r in results if "seq_length" in r})
    rows = []
    for peer in dict.fromkeys(r["peer"] for r in results):
        for length in lengths:
            mine = [r for r in results if r["peer"] == peer]
            best = fastest(results, peer, length)
            if best:
                ours = fastest(results, "agoq", length)
                ratio = f"{ours['tokens_per_second_per_gpu'] / best['tokens_per_second_per_gpu']:.2f}" if ours else ""
                rows.append([NAMES[peer], length, f"{best['tokens_per_second_per_gpu']:.0f}", ratio, *(f"{best.get(what, 0):.1f}" for what in
                             ("allocated_gib", "in_use_gib")), best["setting"]])
            else:
                rows.append([NAMES[peer], length, why_not(mine, length), *[""] * 4])
    return support.markdown(["", "sequence", "tokens/s a GPU", "AGoQ against it", "allocated GiB", "in use GiB", "setting"], rows)


def fastest(results, peer, length):
    good = [r for r in results if r["peer"] == peer and r.get("seq_length") == length and "ms" in r]
    return max(good, key=lambda r: r["tokens_per_second_per_gpu"], default=None)


def why_not(results, length):
    """Of a peer that has no figure for this length."""
    kinds = ("failed", "refused", "out_of_memory")
    reasons = [(kind, r) for r in results for kind in kinds if kind in r and r.get("seq_length", 0) <= length]
    if not reasons:
        return "not run"
    kind, last = reasons[-1]
    # What an allocator says of its last request tells nothing; what a plan says does.
    return kind.replace("_", " ") + ("" if kind == "out_of_memory" and "setting" in last else f": {last[kind][:300]}")


if __name__ == "__main__":
    main()
