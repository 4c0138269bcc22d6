"""The code uses the field's terms: names that were replaced do not come back, and a type's name means one thing."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("AGOQ_PROGRAM", str(ROOT / "build" / "agoq"))
SOURCES = [path for folder in ("src", "include") for path in sorted((ROOT / folder).rglob("*"))
           if path.suffix in {".h", ".cc", ".cu", ".cuh"}]
COMMANDS = ("train", "plan", "eval", "generate", "export", "inspect", "data", "report", "bench", "doctor")

# What was called so once -> what it is called now.
REPLACED = {
    r"Kept(Row|Group)?\b": "SavedTensor, SavedTensorSpec, SavedTensorGroup",
    r"parallel::Part\b": "StageShard",
    r"[Cc]rew\w*": "Coordinator, AsyncCheckpointer",
    r"leads\(\)|\btold\(": "is_rank0, broadcast",
    r"codec::Origin\b|train::Origin\b|find_origin": "GlobalOffset, InitSource",
    r"Given<|kIsGiven": "PdlArgs",
    r"Strips|BlockTasks|Walk": "StripScheduler, BlockScheduler, TensorListScheduler",
    r"Divisor": "FastDivmod",
    r"WholePlace|WholeCell": "LaneTile",
    r"AnyNumbers|Numbers&": "FloatVec8, FloatPtr",
    r"Planes\b(?=[ &]\w+[;,)])|\bView\b(?=[ &]\w+[;,)])": "QuantPtr",
    r"\w*[Rr]oom_?\b(?=[.({;,)=]| =)|buffer_for_\w+": "out, workspace",
    r"addends?": "partial sum",
    r"scatter_tokens": "reduce_scatter_tokens",
    r"linear_add_scattered": "row_parallel_linear_add",
    r"rehears\w*": "warm_up, dry_run",
    r"\bDraws\b|\bPurpose\b": "RngOffsets, RngStream",
    r"gather_texts|comm/texts": "all_gather_strings",
    r"Agreement|Agreed": "ConsistencyCheck",
    r"Patience|Visitor|Doors|\bgreet|farewell": "Timeouts, Acceptor, Endpoints, shutdown",
    r"\w+_again\b": "recompute_*",
    r"parallel::Job\b|make_job": "RunSpec",
    r"BoundaryRing|\bBoundary\b": "PipelineBuffer",
}
# Where a replaced word is the right one: what a product is added to. Checkpoints hold the key.
ALLOWED = {("src/ops/linear/gemm_library_cuda.cc", "addend"), ("src/ops/linear/gemm_library_cuda.h", "addend")}

# What one file decides, and no other writes again.
WRITTEN_ONCE = {
    r'"(?:weights|corrections)/|"exp_avg': "src/parallel/stored_state.h",
    r"\?\s*(?:codec::)?Codec::Bf16\s*:\s*(?:codec::)?Codec::Fp32": "src/codec/quantized.cc",
    r'"(?:main gradients|corrections|fp32 master|residual stream|communication)"': "src/device/owner.h",
    r"exp_avg_sq = (?:codec::)?Codec::Fp32": "src/parallel/unquantized.cc",
}


def test_replaced_names_do_not_come_back() -> None:
    found = []
    for path in SOURCES:
        name, text = str(path.relative_to(ROOT)), path.read_text()
        for pattern, now in REPLACED.items():
            for match in re.finditer(rf"(?<!\w)(?:{pattern})", text):
                if (name, match[0]) not in ALLOWED:
                    line = text.count("\n", 0, match.start()) + 1
                    found.append(f"{name}:{line}: {match[0]} is called {now}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("pattern", WRITTEN_ONCE)
def test_what_one_file_decides_is_written_there_alone(pattern: str) -> None:
    code = {str(path.relative_to(ROOT)): re.sub(r"//.*", "", path.read_text()) for path in SOURCES}
    assert [name for name, text in code.items() if re.search(pattern, text)] == [WRITTEN_ONCE[pattern]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_uses_the_same_words(command: str) -> None:
    text = subprocess.run([PROGRAM, command, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("crew", "rehears", "addend", "doors", "visitor"):
        assert word not in text.lower(), word


def test_a_name_of_a_type_means_one_thing() -> None:
    """Specialisations of a template and definitions inside a class (LoadedModel::Impl) are no second thing."""
    places = defaultdict(set)
    for path in SOURCES:
        for match in re.finditer(r"^\s*(?:class|struct|enum class)(?: alignas\(\w+\))? (\w+)(?: final)?(?:\s*:[^:;{]*)? \{",
                                 path.read_text(), re.MULTILINE):
            places[match[1]].add(str(path.relative_to(ROOT)))
    twice = {name: sorted(where) for name, where in places.items() if len(where) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in sorted(twice.items()))
