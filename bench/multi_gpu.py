#!/usr/bin/env python3
"""Training on the GPUs of one machine, beside one of them: speed, memory, losses, and what becomes of a run that loses a rank.

  bench/multi_gpu.py                                   # all that the GPUs at hand allow
  bench/multi_gpu.py --parts speed --meshes DP8 TP2
  bench/multi_gpu.py --device cuda --share             # every rank on the first GPU, a small model: to try the script
  bench/multi_gpu.py --device cpu --gpus 4             # likewise without a GPU

speed   LLaMA3-8B at 8192 tokens, random tokens, on every mesh that fits the machine: tokens/s of one GPU, and as a share of
        what one GPU alone does with as many micro-batches for each data rank; milliseconds of a step in which computing waits
        for other ranks, for each kind of waiting those of the rank with the most, so that they do not add up; the most
        bytes that a rank holds: as planned (with the estimate for context and libraries), as allocated in its arena, and as
        the driver counts them for a GPU; and the largest deviation of that from the plan.
        Efficiency of a pipeline includes that stages wait for each other, as planned in the column beside it: more
        micro-batches, less of it. Times are means over the timed steps.
losses  a small model, 50 steps on text: the same global batch and widths on every mesh and on one GPU. Gradients are rounded where
        each mesh accumulates them, and summed in another order; so losses agree closely, not to the bit.
faults  the same model: once there is a complete checkpoint, one rank is killed (SIGKILL) in the middle of a later step, and
        while the next checkpoint is written. All others must end by themselves with status 1 and name it; the same command
        then continues, and in deterministic mode the losses of all steps must be those of an undisturbed run, bit for bit.

Results of every run are appended to --log as they come; --from-log prints the tables of such a file again.
"""

import argparse
import itertools
import json
import math
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import support
from agoq_run import Job, Mesh, measure

PARTS = ("speed", "losses", "faults")
# One that computes as larger ones do, and trains in seconds.
SMALL = {"model_type": "llama", "vocab_size": 257, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False}
TINY = SMALL | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 16}
LOSS_STEPS, LOSS_BATCH, LOSS_SEQUENCE = 50, 8, 256
FAULT_STEPS, FAULT_SAVES = 12, 4  # steps of a run, and between two checkpoints


def main():
    options = parse_options()
    if options.from_log:
        return print(tables(support.read_log(options.from_log)))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.parts:
            getattr(bench, part)()
    print(tables(bench.log.entries))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, help="how many (default: all that CUDA_VISIBLE_DEVICES leaves)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--share", action="store_true", help="all ranks on the first GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--meshes", nargs="+", help="names of meshes, as the tables have them (default: all)")
    parser.add_argument("--model", default="llama3-8b", help="of the part speed")
    parser.add_argument("--layers", type=int, help="of that model (default: all)")
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=4, help="that are timed")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=150, help="after which a run is given up")
    parser.add_argument("--packed", action="store_true", help="meshes smaller than the machine run side by side: on GPUs of their own, "
                        "but they share the host, whose cores are divided among all, and the power")
    parser.add_argument("--agoq", default="build/agoq", help="the program, from the repository's root")
    parser.add_argument("--log", help="a file of JSON lines to append to")
    parser.add_argument("--from-log", help="measure nothing, print the tables of this file")
    options = parser.parse_args()
    if options.from_log:
        return options
    support.check_program(options.agoq)
    visible = len(support.visible_gpus()) if options.device == "cuda" else 0
    if options.device == "cuda" and not visible:
        parser.error("there is no GPU; --device cpu tries the script")
    if options.share or options.device == "cpu":
        options.gpus = options.gpus or 4
        if options.model == parser.get_default("model"):
            options.model = TINY if options.device == "cpu" else SMALL
            options.seq_length = min(options.seq_length, 128 if options.device == "cpu" else 1024)
    else:
        options.gpus = options.gpus or visible
        if options.gpus > visible:
            parser.error(f"--gpus {options.gpus}: there are {visible}; --share runs all ranks on the first")
    known = [mesh.name for mesh in meshes_for(options.gpus)]
    if unknown := [name for name in options.meshes or [] if name not in known]:
        parser.error(f"--meshes {unknown[0]}: {options.gpus} GPUs have " + ", ".join(f"'{name}'" for name in known))
    return options


def meshes_for(gpus):
    """Those to be measured on so many GPUs, the most instructive first."""
    candidates = [Mesh(data=gpus), Mesh(tensor=2), Mesh(pipeline=4, chunks=2), Mesh(tensor=4), Mesh(2, 2, 2)]
    if gpus < 4:
        candidates.append(Mesh(pipeline=2, chunks=2))
    return [mesh for mesh in candidates if 1 < mesh.ranks <= gpus]


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        devices = support.describe_gpus() if options.device == "cuda" else "CPU"
        self.log = support.Log(options.log, "bench/multi_gpu.py", devices=devices + (", the first shared by all ranks" if options.share else ""))
        self.loss_batch = math.lcm(LOSS_BATCH, options.gpus)  # which every mesh can divide
        self.visible = support.visible_gpus()
        self.meshes = [mesh for mesh in meshes_for(options.gpus) if not options.meshes or mesh.name in options.meshes]
        model = options.model
        self.large = self.write("large.json", model if isinstance(model, dict) else support.model_config(options.agoq, model, options.layers))
        self.small = self.write("small.json", TINY if options.device == "cpu" else SMALL)
        self.text = folder / "text.txt"
        self.text.write_text(words())
        self.tokens = folder / "tokens.bin"

    def write(self, name, config):
        (self.folder / name).write_text(json.dumps(config))
        return self.folder / name

    def gpus_of(self, mesh, first=0):
        """For the ranks of a mesh; None on the CPU."""
        if self.options.device == "cpu":
            return None
        return self.visible[:1] if self.options.share else self.visible[first:first + mesh.ranks]

    # speed

    def speed(self):
        support.write_random_tokens(self.tokens, json.loads(self.large.read_text())["vocab_size"])
        for batch in self.side_by_side(list(itertools.product(self.options.micro_batches, [Mesh(), *self.meshes]))):
            ranks = taken(batch)
            with ThreadPoolExecutor(len(batch)) as pool:
                list(pool.map(lambda case: self.time(*case, ranks), batch))

    def side_by_side(self, cases):
        """Cases with the GPUs of each, in groups that run at the same time: one case each, unless they are to be packed."""
        groups = []
        for micro_batches, mesh in cases:
            room = (group for group in groups if self.options.packed and taken(group) + mesh.ranks <= self.options.gpus)
            group = next(room, None)
            if group is None:
                groups.append(group := [])
            group.append((micro_batches, mesh, self.gpus_of(mesh, first=taken(group))))
        return groups

    def time(self, micro_batches, mesh, gpus, ranks):
        """`ranks`: of all jobs that run at this time."""
        o = self.options
        job = Job(o.agoq, self.large, self.tokens, o.device, mesh, o.seq_length, micro_batches, beside=ranks - mesh.ranks)
        planned = job.plan()
        outcome = planned if "failed" in planned else measure(job, o.steps, o.warmup, o.seconds, gpus)
        if "failed" not in outcome:
            outcome |= {"planned": [rank["total"] + planned["cuda_context_estimate"] for rank in planned["ranks"]], "idle": planned["idle"]}
        self.log.add(part="speed", mesh=mesh.name, ranks=mesh.ranks, micro_batches=micro_batches, packed=o.packed, **outcome)

    # losses

    def small_job(self, mesh, *more):
        return Job(self.options.agoq, self.small, self.text, self.options.device, mesh, LOSS_SEQUENCE if self.options.device == "cuda" else 64,
                   self.loss_batch // mesh.data, ("--seed", 1, *more))

    def finish(self, job, run, steps):
        """Its losses, by step; or {"failed": why}."""
        with job.start(run, steps, self.gpus_of(job.mesh)) as ranks:
            if any(status != 0 for status in ranks.wait(self.options.seconds)):
                return {"failed": ranks.failure()}
        return {"losses": [step["loss"] for step in support.read_steps(run).values()]}

    def losses(self):
        alone = None  # losses of one GPU
        for mesh in [Mesh(), *self.meshes]:
            outcome = self.finish(self.small_job(mesh, "--pipeline-stage-widths", "same"), self.folder / f"losses-{mesh.name}", LOSS_STEPS)
            losses = outcome.pop("losses", None)
            alone = losses if mesh.ranks == 1 else alone
            if losses:
                outcome = {"first": losses[0], "last": losses[-1]}
            if losses and alone:
                differences = [a - b for a, b in zip(alone, losses)]
                outcome |= {"largest_difference": max(map(abs, differences)), "last_difference": abs(sum(differences[-10:]) / 10)}
            self.log.add(part="losses", mesh=mesh.name, **outcome)

    # faults

    def faults(self):
        for mesh in self.meshes:
            job = self.small_job(mesh, "--deterministic-mode", "--save-interval", FAULT_SAVES, "--log-interval", 1)
            whole = self.finish(job, self.folder / f"whole-{mesh.name}", FAULT_STEPS)
            if "failed" in whole:
                self.log.add(part="faults", mesh=mesh.name, moment="undisturbed", **whole)
                continue
            for moment in ("step", "checkpoint"):
                run = self.folder / f"killed-{mesh.name}-{moment}"
                outcome = self.kill(job, run, moment)
                if "failed" not in outcome:
                    again = self.finish(job, run, FAULT_STEPS)
                    outcome |= {"same": again.get("losses") == whole["losses"]} if "failed" not in again else again
                self.log.add(part="faults", mesh=mesh.name, moment=moment, **outcome)

    def kill(self, job, run, moment):
        """Kills a rank at that moment; how long the others took to end, and whether all did so as they should."""
        victim = random.Random(1).randrange(job.mesh.ranks)
        with job.start(run, FAULT_STEPS, self.gpus_of(job.mesh)) as ranks:
            begun = {"step": lambda: len(support.read_steps(run)) > FAULT_SAVES, "checkpoint": lambda: being_saved(run)}[moment]
            if not ranks.until(lambda: is_saved(run) and begun(), self.options.seconds, pause=0.0005):
                return {"failed": ranks.failure() if any(p.poll() for p in ranks.processes) else "the moment was missed"}
            ranks.signal(signal.SIGKILL, victim)
            start = time.monotonic()
            statuses = ranks.wait(self.options.seconds)
            seconds = time.monotonic() - start
            others = [rank for rank in range(job.mesh.ranks) if rank != victim]
            named = [f"rank {victim} is gone" in ranks.errors(rank) for rank in others]
            if statuses[victim] == 0:
                return {"failed": "the moment was missed: the run was over"}
            return {"victim": victim, "seconds": seconds, "steps": len(support.read_steps(run)), "unfinished": being_saved(run),
                    "ended": all(statuses[rank] == 1 for rank in others), "named": all(named)}


def taken(group):
    """GPUs of cases that run side by side."""
    return sum(mesh.ranks for _, mesh, _ in group)


def being_saved(run):
    return any((run / "checkpoints").glob("step-*.tmp-*"))


def is_saved(run):
    """Whether there is a complete checkpoint to go on from."""
    return (run / "checkpoints/latest").exists()


def words():
    """A text to learn from: words by a rule, with some chance."""
    source = random.Random(1)
    vocabulary = ["".join(source.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(source.randint(2, 9))) for _ in range(500)]
    order = [source.sample(range(500), 4) for _ in vocabulary]
    at, text = 0, []
    for _ in range(100_000):
        text.append(vocabulary[at])
        at = source.choice(order[at])
    return " ".join(text)


def tables(entries):
    parts = {part: [entry for entry in entries if entry["part"] == part] for part in PARTS}
    tables = [table(parts[part]) for part, table in (("speed", speed_table), ("losses", losses_table), ("faults", faults_table)) if parts[part]]
    return "\n\n".join([support.describe_conditions(entries), *tables]).strip()


def speed_table(results):
    alone = {r["micro_batches"]: r["tokens_per_second_per_gpu"] for r in results if r["ranks"] == 1 and "failed" not in r}
    rows = []
    for r in results:
        start = [r["mesh"], r["micro_batches"]]
        if "failed" in r:
            rows.append([*start, "failed: " + r["failed"], *[""] * 8])
            continue
        reference = alone.get(r["micro_batches"])
        exposed = ", ".join(f"{kind} {ms:.1f}" for kind, ms in r["exposed_ms"].items() if ms >= 0.05) or "none" if r["exposed_ms"] else ""
        gib = [f"{max(r[what]) / support.GIB:.2f}" if r[what] else "" for what in ("planned", "allocated", "in_use")]
        deviation = max((used - planned for used, planned in zip(r["in_use"], r["planned"])), key=abs, default=None)
        rows.append([*start, f"{r['tokens_per_second_per_gpu']:.0f}", f"{r['tokens_per_second_per_gpu'] / reference:.3f}" if reference else "",
                     f"{100 * r['idle']:.1f}%" if r["idle"] else "", f"{r['ms']:.1f}", exposed, *gib,
                     "" if deviation is None else f"{deviation / support.GIB:+.2f}"])
    return support.markdown(["mesh", "micro-batches", "tokens/s a GPU", "efficiency", "idle planned", "ms/step", "exposed ms", "planned GiB",
                             "allocated GiB", "driver GiB", "driver against plan"], rows)


def losses_table(results):
    rows = []
    for r in results:
        if "failed" in r:
            rows.append([r["mesh"], f"failed: {r['failed']}", *[""] * 3])
            continue
        differences = ("largest_difference", "last_difference")
        compared = [f"{r[what]:.4f}" for what in differences] if differences[0] in r else ["no losses of one GPU to compare with", ""]
        rows.append([r["mesh"], f"{r['first']:.4f}", f"{r['last']:.4f}", *compared])
    return support.markdown([f"mesh, {LOSS_STEPS} steps", "first loss", "last loss", "largest difference to one GPU",
                             "difference of the last ten's mean"], rows)


def faults_table(results):
    rows = [[r["mesh"], r["moment"], *([f"failed: {r['failed']}"] + [""] * 3 if "failed" in r else
                                       [f"{r['seconds']:.1f}", yes(r["ended"]), yes(r["named"]), yes(r["same"])])] for r in results]
    return support.markdown(["mesh", "killed in the middle of a", "seconds until all had ended", "with status 1", "naming the rank",
                             "resumed to the same bits"], rows)


def yes(so):
    return "yes" if so else "NO"


if __name__ == "__main__":
    main()
