"""What the benchmarks that start other programs share: processes as a launcher would start them, what AGoQ writes about a
run, the GPUs at hand, tables."""

import array
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
# NVLink multicast stays off for all alike, as AGoQ has it.
QUIET_NVLINK = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}


def free_port():
    """Free a moment ago, and none that the system hands out to connections. So is the port 1000 beside it, which AGoQ takes."""
    while True:
        port = random.randint(20000, 29999)
        try:
            for number in (port, port + 1000):
                with socket.socket() as probe:
                    probe.bind(("", number))
            return port
        except OSError:
            continue


class Ranks:
    """The same command as several processes, with what torchrun would leave in their environment. `gpus`: which of the
    machine's GPUs they see, in turn; None: all. What a rank prints lies in `folder`, which goes with the object."""

    def __init__(self, command, world, gpus=None, environment=None):
        self._folder = tempfile.TemporaryDirectory()
        port = free_port()
        self.processes = []
        for rank in range(world):
            variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
                         "MASTER_PORT": port, "OMP_WAIT_POLICY": "passive"}
            if gpus is not None:
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
            with open(self._file(rank, "out"), "w") as out, open(self._file(rank, "err"), "w") as err:
                self.processes.append(subprocess.Popen(
                    [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    env=os.environ | QUIET_NVLINK | {k: str(v) for k, v in variables.items()} | (environment or {})))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self._folder.cleanup()

    def _file(self, rank, stream):
        return Path(self._folder.name) / f"{stream}{rank}"

    def output(self, rank):
        return self._file(rank, "out").read_text(errors="replace")

    def errors(self, rank):
        return self._file(rank, "err").read_text(errors="replace")

    def signal(self, number, rank=None):
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.poll() is None:
                process.send_signal(number)

    def until(self, so, seconds, pause=0.02):
        """Whether it is so within that time; no longer asked once all, or one that failed, have ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if so():
                return True
            statuses = [process.poll() for process in self.processes]
            if any(statuses) or None not in statuses:
                return so()
            time.sleep(pause)
        return False

    def wait(self, seconds):
        """Statuses; None for who has not ended in time. A rank that fails alone leaves the others a while to notice."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(process.poll() is None for process in self.processes):
            time.sleep(0.02)
        return [process.poll() for process in self.processes]

    def failure(self):
        """What the first rank that failed has said last."""
        for rank, process in enumerate(self.processes):
            if process.poll():
                said = last_line(self.errors(rank)) or last_line(self.output(rank)) or f"status {process.poll()}"
                return f"rank {rank}: {said}"
        return "not done in time"


def run_worker(script, arguments, world, seconds, gpus=None):
    """Runs one of bench/peers on so many ranks; what it has printed, see peers/worker.py. A run that fails otherwise, or does not end in
    time, adds {"failed": why}."""
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    with Ranks([sys.executable, "-W", "ignore", script, *arguments], world, gpus, environment) as ranks:
        ranks.until(lambda: False, seconds)  # all have ended, or one has failed
        ranks.wait(3)
        lines = [line for rank in range(world) for line in ranks.output(rank).splitlines() if line.startswith("{")]
        results = [json.loads(line) for line in lines]
        results = [r for r in results if "ms" in r] + [r for r in results if "out_of_memory" in r][:1]
        if any(process.poll() != 0 for process in ranks.processes) and not any("out_of_memory" in r for r in results):
            results.append({"failed": ranks.failure()})
        return results


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


def plan(agoq, arguments):
    """What `agoq plan` says, or {"failed": why}."""
    done = subprocess.run([agoq, "plan", *map(str, arguments), "--json"], cwd=ROOT, capture_output=True, text=True)
    return {"failed": last_line(done.stderr)} if done.returncode else json.loads(done.stdout)


def model_config(agoq, model, layers=None):
    """The config.json of a preset or folder, with another number of layers if one is given."""
    planned = plan(agoq, [model, "--seq-length", 1])
    if "failed" in planned:
        raise SystemExit(planned["failed"])
    return planned["model"] | ({"num_hidden_layers": layers} if layers else {})


def write_random_tokens(path, vocabulary, count=1 << 21):
    """A flat file of int32 tokens, the same whenever it is written."""
    source = random.Random(1)
    tokens = array.array("i", (int(vocabulary * source.random()) for _ in range(count)))
    Path(path).write_bytes(tokens.tobytes())


def read_steps(run):
    """Of a run folder, by step: the lines of metrics.jsonl that tell of a step. A last line still being written is left out."""
    try:
        lines = (Path(run) / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return {}
    entries = [json.loads(line) for line in lines]
    return {entry["step"]: entry for entry in entries if "loss" in entry}


def read_memory(run):
    """Bytes of each rank's arena, (predicted, allocated); none before the first step is done."""
    try:
        told = json.loads((Path(run) / "memory.json").read_text())
    except FileNotFoundError:
        return []
    return [tuple(sum(rank[what].values()) for what in ("predicted", "allocated")) for rank in [told, *told.get("other_ranks", [])]]


def query_gpus(*fields):
    """Of every GPU, what nvidia-smi says of it; none without one."""
    command = ["nvidia-smi", "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[word.strip() for word in line.split(",")] for line in done.stdout.strip().splitlines()]


def gpu_bytes_in_use():
    return [int(used) * 2**20 for (used,) in query_gpus("memory.used")]


def describe_gpus():
    gpus = query_gpus("name", "driver_version")
    return f"{len(gpus)} x {gpus[0][0]}, driver {gpus[0][1]}" if gpus else "no GPU"


def markdown(header, rows):
    """The first column is text, the others numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
