"""What the benchmarks that start other programs share: processes as a launcher would start them, what AGoQ writes about a
run, the GPUs at hand, logs and tables."""

import array
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record
from record import ROOT

GIB = 2**30
# NVLink multicast stays off for all alike, as AGoQ has it, unless the environment says otherwise.
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
    """The same command as several processes, with what torchrun would leave in their environment. `gpus`: those of
    visible_gpus() that they see; None: all. What a rank prints lies in a folder that goes with the object."""

    def __init__(self, command, world, gpus=None, environment=None):
        self._folder = tempfile.TemporaryDirectory()
        port = free_port()
        self.processes = []
        for rank in range(world):
            variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
                         "MASTER_PORT": port, "OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            if gpus is not None:
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            with open(self._file(rank, "out"), "w") as out, open(self._file(rank, "err"), "w") as err:
                self.processes.append(subprocess.Popen(
                    [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    env=QUIET_NVLINK | os.environ | {k: str(v) for k, v in variables.items()} | (environment or {})))

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
        """Statuses; None for who has not ended in time."""
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


def threads_each(processes):
    """Of so many that compute at the same time."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def run_worker(script, arguments, world, seconds, gpus=None, packages=None):
    """Runs one of bench/peers on so many ranks; what it has printed, see peers/worker.py. A run that fails otherwise, or does not end in
    time, adds {"failed": why}. `packages`: a folder of Python packages that go before those installed."""
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    if packages:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))
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
    """Of every GPU that programs started here may use, as CUDA_VISIBLE_DEVICES names and orders them: its index among all of the
    machine and what nvidia-smi says of it."""
    command = ["nvidia-smi", "--query-gpu=" + ",".join(("index", "uuid", *fields)), "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    gpus = [[word.strip() for word in line.split(",")] for line in done.stdout.strip().splitlines()]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = filter(None, map(str.strip, visible.split(",")))
        gpus = [gpu for name in names for gpu in gpus if gpu[0] == name or gpu[1].startswith(name)]
    return [(index, *told) for index, _, *told in gpus]


def visible_gpus():
    """Their indices, as Ranks takes them."""
    return [index for (index,) in query_gpus()]


def gpu_bytes_in_use(gpus):
    used = dict(query_gpus("memory.used"))
    return [int(used[gpu]) * 2**20 for gpu in gpus]


def describe_gpus():
    gpus = query_gpus("name", "driver_version")
    return f"{len(gpus)} x {gpus[0][1]}, driver {gpus[0][2]}" if gpus else "no GPU"


def check_program(path):
    if not os.access(ROOT / path, os.X_OK):
        raise SystemExit(f"there is no program {path}: `cmake --build build --target agoq` makes build/agoq, --agoq names another")


class Log:
    """Results as they come: kept in `entries`, shown on stderr, and appended to a file of JSON lines if there is one. The first
    holds the conditions."""

    def __init__(self, path, script, **conditions):
        self._path, self.entries = path, []
        command = shlex.join([script, *record.without_machine_paths(sys.argv[1:])])
        self.add(part="conditions", command=command, **record.machine(), **conditions)

    def add(self, **entry):
        self.entries.append(entry)
        line = json.dumps(entry)
        print(line, file=sys.stderr, flush=True)
        if self._path:
            with open(self._path, "a") as file:
                file.write(line + "\n")


def read_log(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def describe_conditions(entries):
    """Those of a log, which several commands may have written."""
    return "\n\n".join("\n".join(f"- {name}: {f'`{told}`' if name == 'command' else told}" for name, told in entry.items() if name != "part")
                       for entry in entries if entry.get("part") == "conditions")


def markdown(header, rows):
    """The first column is text, the others numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
