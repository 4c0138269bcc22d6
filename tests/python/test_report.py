"""agoq report on a synthetic run folder."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from pathlib import Path

import pytest
from conftest import Run

from agoq import follow as following
from agoq.run_folder import read_memory, read_metrics


def step_line(step: int, **changes: object) -> str:
    record = {"step": step, "loss": 5.0 / step, "lr": 1e-3, "grad_norm": 2.0 / step, "step_ms": 12.5,
              "tokens_per_second": 1000.0 + step, "tflops": 0.5, "mfu": 0.25, "memory_bytes": 3 << 20, "skipped": 0}
    return json.dumps(record | changes) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run killed in step 21 while it wrote the line, and resumed at step 19."""
    run = tmp_path / "demo"
    run.mkdir()
    lines = [step_line(step) for step in range(1, 21)]
    lines[9] += json.dumps({"step": 10, "valid_loss": 1.5}) + "\n"
    lines.append(step_line(21)[:30] + "\n")
    lines += [step_line(step, loss=0.125) for step in (19, 20)]
    lines += [step_line(21, loss=None), json.dumps({"step": 21, "valid_loss": 0.75}) + "\n"]
    (run / "metrics.jsonl").write_text("".join(lines) + step_line(22)[:17])
    owners = {"weights": 1000, "saved activations": 3000}
    (run / "memory.json").write_text(json.dumps({
        "rank": 0, "predicted": owners, "allocated": owners, "reference_bytes": {"weights": 2000, "moments": 8000}}))
    (run / "summary.json").write_text(json.dumps({"valid_loss": 0.75, "tokens": 12345, "bytes_per_parameter": 7.06}))
    return run


def test_metrics_after_a_resume(folder: Path) -> None:
    metrics = read_metrics(folder)
    steps, losses = metrics.series("loss")
    assert steps == list(range(1, 22)) and losses[17:20] == [5.0 / 18, 0.125, 0.125] and math.isnan(losses[20])
    assert metrics.evaluations() == ([10, 21], [1.5, 0.75])
    assert metrics.damaged_lines == 2
    memory = read_memory(folder)
    assert memory is not None and memory.reference == {"weights": 2000, "moments": 8000}


def test_damaged_lines_are_counted_whatever_they_hold(folder: Path, run: Run) -> None:
    lines = b"\x1b]0;owned\x07\n" + b"[" * 200_000 + b"\n" + b'{"step": 1, "loss": \xff}\n' + b'{"step": "\x00"}\n'
    (folder / "metrics.jsonl").write_bytes(lines + step_line(3).encode())
    assert read_metrics(folder).damaged_lines == 4
    assert b"\x1b" not in run("report", folder).stderr
    odd = folder / "\x1b[2J"
    assert b"\x1b" not in run("report", odd, status=1).stderr


def test_picture(folder: Path, run: Run) -> None:
    done = run("report", folder)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert b"left out 2 lines" in done.stderr
    (folder / "memory.json").unlink()
    (folder / "summary.json").unlink()
    run("report", folder, "--output", folder / "sub" / "a.svg")
    assert b"<svg" in (folder / "sub" / "a.svg").read_bytes()
    assert "cannot draw" in run("report", folder, "--output", folder / "a.docx", status=1).stderr.decode()


def test_tensorboard(folder: Path, run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for _ in range(2):  # the second export replaces the first
        run("report", folder, "--to", "tensorboard")
    (events,) = (folder / "tensorboard").iterdir()
    read = {(value.tag, event.step): value.tensor.float_val[0]
            for event in EventFileLoader(str(events)).Load() for value in event.summary.value}
    assert read["loss/train", 20] == 0.125 and ("loss/train", 21) not in read
    assert read["loss/valid", 21] == 0.75 and read["speed/tokens_per_second", 7] == 1007.0


def test_follow_a_run_that_goes_on(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    sink = io.StringIO()
    thread = threading.Thread(target=following.follow, args=(tmp_path, 0.01, sink))
    thread.start()
    with metrics.open("w") as file:
        for part in (step_line(1), step_line(2)[:20], step_line(2)[20:], '{"step": 2, "valid_loss": 3.25}\n'):
            file.write(part)
            file.flush()
            time.sleep(0.03)
    (tmp_path / "summary.json").write_text("{}")
    thread.join(5)
    assert not thread.is_alive()
    header, *rows = sink.getvalue().splitlines()
    assert header.split()[:2] == ["step", "loss"]
    assert [row.split()[:2] for row in rows] == [["1", "5.0000"], ["2", "2.5000"], ["2", "3.2500"]]
    assert "25.0%" in rows[0] and "3.0 MiB" in rows[0]


def test_errors(tmp_path: Path, run: Run, run_process: Run) -> None:
    assert "no run folder at" in run_process("report", tmp_path / "nowhere", status=1).stderr.decode()
    assert not (tmp_path / "nowhere").exists()
    assert "holds no metrics.jsonl" in run("report", tmp_path, status=1).stderr.decode()
    (tmp_path / "metrics.jsonl").write_text('{"st')
    assert "holds no step yet" in run("report", tmp_path, status=1).stderr.decode()
