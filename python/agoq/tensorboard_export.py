"""A run as TensorBoard event files, without PyTorch or TensorFlow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from agoq.command import UserError
from agoq.run_folder import Metrics, number

TAGS = {"loss": "loss/train", "lr": "optimizer/lr", "grad_norm": "optimizer/grad_norm", "skipped": "optimizer/skipped",
        "step_ms": "speed/step_ms", "tokens_per_second": "speed/tokens_per_second", "tflops": "speed/tflops",
        "mfu": "speed/mfu", "memory_bytes": "memory/bytes"}


def open_writer(folder: Path) -> Any:
    """A writer into an otherwise empty set of event files: those of an earlier export are removed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        raise UserError("writing TensorBoard files needs the package tensorboard: pip install tensorboard") from None
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return Writer(str(folder))


def export(metrics: Metrics, folder: Path) -> int:
    """Write the scalars of a run; returns how many."""
    writer = open_writer(folder)
    count = 0
    for step in sorted(metrics.steps):
        for key, tag in TAGS.items():
            value = number(metrics.steps[step].get(key))
            if not math.isnan(value):
                writer.add_scalar(tag, value, step)
                count += 1
    for step, value in zip(*metrics.evaluations(), strict=True):
        writer.add_scalar("loss/valid", value, step)
        count += 1
    writer.close()
    return count
