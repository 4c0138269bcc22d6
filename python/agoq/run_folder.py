"""Reading a run folder: metrics.jsonl, memory.json, summary.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agoq.command import UserError
from agoq.json_file import read_json

Record = dict[str, Any]
Bytes = dict[str, int]  # by owner


@dataclass
class Metrics:
    """Lines of metrics.jsonl: training steps, and evaluations by step. A step done again replaces the earlier one."""

    steps: dict[int, Record] = field(default_factory=dict)
    valid_loss: dict[int, float] = field(default_factory=dict)
    damaged_lines: int = 0

    def add(self, record: Record) -> None:
        step = int(record["step"])
        if "valid_loss" in record:
            self.valid_loss[step] = number(record["valid_loss"])
        if "loss" in record:
            self.steps[step] = record

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one key, where it is present."""
        steps = sorted(step for step, record in self.steps.items() if key in record)
        return steps, [number(self.steps[step][key]) for step in steps]

    def evaluations(self) -> tuple[list[int], list[float]]:
        steps = sorted(self.valid_loss)
        return steps, [self.valid_loss[step] for step in steps]


@dataclass
class Memory:
    """Bytes by owner of one rank: as planned, as allocated, and what training in bf16/fp32 would hold."""

    predicted: Bytes
    allocated: Bytes
    reference: Bytes
    rank: int


def number(value: Any) -> float:
    """JSON has no NaN: writers put null, or a string such as "nan"."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def parse_record(line: str | bytes) -> Record | None:
    """None for a line that a killed program left half written, or that is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if known else None


def check_run(run: Path) -> None:
    if not run.is_dir():
        raise UserError(f"no run folder at '{run}': give the folder that `agoq train` writes, such as runs/demo")


def read_metrics(run: Path) -> Metrics:
    check_run(run)
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"'{run}' holds no metrics.jsonl: is it the folder of a run, and has the run made a step?")
    metrics = Metrics()
    with path.open("rb") as file:
        for line in file:
            record = parse_record(line)
            if record is not None:
                metrics.add(record)
            elif line.strip():
                metrics.damaged_lines += 1
    return metrics


def owners(value: Any) -> Bytes:
    return {str(owner): int(size) for owner, size in value.items()} if isinstance(value, dict) else {}


def read_memory(run: Path) -> Memory | None:
    value = read_json(run / "memory.json")
    if not value:
        return None
    return Memory(owners(value.get("predicted")), owners(value.get("allocated")),
                  owners(value.get("reference_bytes")), int(value.get("rank", 0)))


def read_summary(run: Path) -> Record | None:
    return read_json(run / "summary.json") or None


def readable_bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
