"""Runs of `agoq train` on a mesh of processes, for benchmarks."""

import dataclasses
import statistics
import tempfile
from pathlib import Path

import support


@dataclasses.dataclass(frozen=True)
class Mesh:
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    chunks: int = 1  # of each stage
    sharding: str = "optim"  # --data-parallel-sharding-strategy

    @property
    def ranks(self):
        return self.tensor * self.pipeline * self.data

    @property
    def name(self):
        axes = [f"{short}{size}" for short, size in (("TP", self.tensor), ("PP", self.pipeline), ("DP", self.data)) if size > 1]
        zero = {"no_shard": ", nothing sharded", "optim": "", "optim_grads": ", ZeRO-2", "optim_grads_params": ", ZeRO-3"}[self.sharding]
        return "·".join(axes) + (f", {self.chunks} chunks" if self.chunks > 1 else "") + zero or "one"

    @property
    def settings(self):
        return ["--tensor-model-parallel-size", self.tensor, "--pipeline-model-parallel-size", self.pipeline,
                "--num-virtual-stages-per-pipeline-rank", self.chunks, "--data-parallel-sharding-strategy", self.sharding]


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run. `more`: further settings, such as the policy."""
    agoq: str
    model: str  # config.json
    data: str   # a flat file of int32 tokens, or a text
    device: str
    mesh: Mesh
    seq_length: int
    micro_batches: int = 1  # of one step, on each data rank
    more: tuple = ()
    beside: int = 0         # ranks of other jobs that run at the same time

    @property
    def batch(self):
        """The settings that `agoq plan` knows, too."""
        return ["--model-config", self.model, "--seq-length", self.seq_length, "--micro-batch-size", 1,
                "--global-batch-size", self.micro_batches * self.mesh.data, *self.mesh.settings]

    @property
    def tokens(self):
        """Of one step."""
        return self.seq_length * self.micro_batches * self.mesh.data

    def command(self, run, steps):
        threads = support.threads_each(self.mesh.ranks + self.beside)
        return [self.agoq, "train", *self.batch, "--max-position-embeddings", max(self.seq_length, 8192), "--data-path", self.data,
                "--data-dtype", "int32", "--device", self.device, "--threads", threads, "--train-iters", steps, "--lr-decay-style", "constant",
                "--lr", "1e-4", "--distributed-timeout-minutes", 3, "--save", run, *self.more]

    def start(self, run, steps, gpus=None):
        return support.Ranks(self.command(run, steps), self.mesh.ranks, gpus)

    def plan(self):
        return support.plan(self.agoq, [*self.batch, "--world-size", self.mesh.ranks, "--target", self.device, *self.more])


def measure(job, steps, warmup, seconds, gpus=None):
    """Means over `steps` steps after `warmup`, each as the run tells it: without what lies between steps; or {"failed": why}. The
    run is killed then: a model of this size is not to be written to the disk."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with job.start(run, 10**6, gpus) as ranks:
            if not ranks.until(lambda: len(support.read_steps(run)) >= warmup + steps and support.read_memory(run), seconds):
                ranks.wait(5)  # for the rank that knows the cause
                return {"failed": ranks.failure()}
            # of GPUs that a rank has for itself
            in_use = support.gpu_bytes_in_use(gpus) if gpus and len(gpus) == job.mesh.ranks else []
            timed = list(support.read_steps(run).values())[warmup:warmup + steps]
            memory = support.read_memory(run)
    ms = statistics.fmean(step["step_ms"] for step in timed)
    kinds = timed[0].get("exposed_ms") or {}
    return {"ms": ms, "tokens_per_second_per_gpu": 1e3 * job.tokens / ms / job.mesh.ranks, "loss": timed[-1]["loss"],
            "exposed_ms": {kind: statistics.fmean(step["exposed_ms"][kind] for step in timed) for kind in kinds},
            "predicted": [predicted for predicted, _ in memory], "allocated": [allocated for _, allocated in memory], "in_use": in_use}
