"""Twenty steps of every golden model and mesh, the bytes of their checkpoints, and plans: as they were when last recorded.

A change that only moves or renames code leaves every bit of these. `AGOQ_RECORD_PINS=1 pytest tests/python/test_pins.py`
records them anew; the commit that does so says why. Floating-point sums depend on the CPU (width of its vectors, the BLAS
kernels chosen for it), so bits are compared on the CPU that recorded them; on others, losses within 2% of each step's.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
GOLDENS = TESTS / "goldens"
PINS = TESTS / "pins.json"
PROGRAM = os.environ.get("AGOQ_PROGRAM", str(TESTS.parent / "build" / "agoq"))
RECORDING = bool(os.environ.get("AGOQ_RECORD_PINS"))

MODELS = sorted(path.parent.name for path in GOLDENS.glob("*/golden.json"))
VARIANTS = {"agoq": ["--activation-policy", "agoq"], "bf16": ["--compute-dtype", "bf16"], "fp32": ["--baseline", "fp32"]}
AXES = {"tp": "--tensor-model-parallel-size", "pp": "--pipeline-model-parallel-size",
        "v": "--num-virtual-stages-per-pipeline-rank"}
MESHES = [{"tp": tp, "pp": pp, "dp": dp, "v": v}
          for tp in (1, 2) for pp in (1, 2) for dp in (1, 2) for v in (1, 2) if tp * pp * dp > 1 and v <= pp]
PLANS = {
    "llama3-8b": ["llama3-8b", "--seq-length", "8192"],
    "llama3-8b in bf16": ["llama3-8b", "--seq-length", "8192", "--baseline", "bf16"],
    "llama3-8b recomputed": ["llama3-8b", "--seq-length", "32768", "--recompute-granularity", "full"],
    "llama3-8b in stages": ["llama3-8b", "--seq-length", "8192", "--global-batch-size", "16", "--world-size", "8",
                            AXES["pp"], "4", AXES["v"], "2"],
    "llama2-13b by tensors": ["llama2-13b", "--seq-length", "12288", "--world-size", "8", AXES["tp"], "8"],
    "demo on a CPU": ["demo", "--target", "cpu", "--micro-batch-size", "8", "--global-batch-size", "16"],
}

Pin = dict[str, Any]


def mesh_name(mesh: dict[str, int]) -> str:
    return " ".join(f"{axis}{size}" for axis, size in mesh.items())


@cache
def this_cpu() -> str:
    """What the bits of a sum depend on: the instruction sets compiled for, and the kernels that OpenBLAS chose."""
    report = subprocess.run([PROGRAM, "doctor"], capture_output=True, text=True, check=False).stdout
    sets, kernels = re.search(r"instruction sets +(.+)", report), re.search(r"kernels for (\w+)", report)
    assert sets and kernels, report
    return f"{sets[1]}; {kernels[1]}"


def write_tokens(path: Path) -> None:
    """4000 ids from 1 to 63, in documents of about 20 that end with a 1: few enough ids to be learned in 20 steps."""
    draws = random.Random(7)
    token, tokens = 3, []
    for _ in range(4000):
        token = (token * 5 + draws.randrange(7)) % 62 + 2
        tokens.append(1 if draws.random() < 0.05 else token)
    path.write_bytes(struct.pack("<4000H", *tokens))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train(folder: Path, world: int, flags: list[str]) -> Pin:
    """Runs 20 steps as `world` processes and returns what must not change of them."""
    write_tokens(folder / "tokens.bin")
    command = [PROGRAM, "train", "--device", "cpu", "--data-path", str(folder / "tokens.bin"), "--eod-token", "1",
               "--seq-length", "32", "--micro-batch-size", "2", "--global-batch-size", "8", "--lr", "5e-3",
               "--train-iters", "20", "--save", str(folder / "run"), *flags]
    common = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "WORLD_SIZE": str(world),
                           "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
    try:
        said = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, said
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {"losses": [step["loss"] for step in steps if "loss" in step],
            "checkpoint": fingerprint(folder / "run" / "checkpoints" / "step-00000020")}


def fingerprint(checkpoint: Path) -> str:
    """A hash of a checkpoint's tensors and identity; its settings also hold paths."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    kept = {"files": manifest["files"], "tensors": manifest["tensors"], "identity": manifest["metadata"]["identity"]}
    sha = hashlib.sha256(json.dumps(kept).encode())
    for shard in sorted(checkpoint.glob("*.safetensors")):
        sha.update(shard.read_bytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def pins() -> Iterator[Pin]:
    if RECORDING:
        recorded: Pin = json.loads(PINS.read_text()) if PINS.exists() else {"cpu": this_cpu(), "runs": {}, "plans": {}}
        assert recorded["cpu"] == this_cpu(), f"{PINS} is of another CPU: remove it to record all anew"
        yield recorded
        PINS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    else:
        yield json.loads(PINS.read_text())


def compare(pins: Pin, name: str, now: Pin) -> None:
    if RECORDING:
        pins["runs"][name] = now
    pin = pins["runs"][name]
    assert now["losses"] == pytest.approx(pin["losses"], rel=0.02)
    assert now["losses"][-1] < now["losses"][0] - 0.1, "it does not learn"
    if pins["cpu"] == this_cpu():
        assert now == pin


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", MODELS)
def test_golden_model_trains_the_same_bits(tmp_path: Path, pins: Pin, model: str, variant: str) -> None:
    flags = ["--model", str(GOLDENS / model / "model"), *VARIANTS[variant]]
    if model == "packed":
        flags += ["--reset-position-ids", "--reset-attention-mask"]
    compare(pins, f"{model} {variant}", train(tmp_path, 1, flags))


@pytest.mark.parametrize("mesh", MESHES, ids=mesh_name)
def test_mesh_trains_the_same_bits(tmp_path: Path, pins: Pin, mesh: dict[str, int]) -> None:
    config = json.loads((GOLDENS / "llama_gqa" / "model" / "config.json").read_text())
    shape = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | shape))
    flags = ["--model-config", str(tmp_path / "config.json")]
    for axis, flag in AXES.items():
        flags += [flag, str(mesh[axis])]
    compare(pins, mesh_name(mesh), train(tmp_path, mesh["tp"] * mesh["pp"] * mesh["dp"], flags))


@pytest.mark.parametrize("name", PLANS)
def test_plan_stays(pins: Pin, name: str) -> None:
    done = subprocess.run([PROGRAM, "plan", "--json", *PLANS[name]], capture_output=True, text=True, check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "2"})
    plan = json.loads(done.stdout)
    if RECORDING:
        pins["plans"][name] = plan
    assert plan == pins["plans"][name]
