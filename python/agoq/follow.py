"""A run as it goes: a table in the terminal that grows with metrics.jsonl."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from agoq.run_folder import Record, check_run, number, parse_record, readable_bytes

HEADER = f"{'step':>8} {'loss':>9} {'held out':>9} {'lr':>9} {'grad':>8} {'ms':>8} {'tokens/s':>9} {'MFU':>6} " \
         f"{'memory':>10} {'skipped':>7}"
ROWS_BETWEEN_HEADERS = 25


class Tail:
    """Whole lines of a file that grows; an unfinished last line waits until it is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def lines(self) -> list[bytes]:
        if not self.path.is_file():
            return []
        if self.path.stat().st_size < self.offset:  # begun again
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            *whole, _ = file.read().split(b"\n")
        self.offset += sum(len(line) + 1 for line in whole)
        return whole


def cell(record: Record, key: str, form: str, width: int) -> str:
    return f"{form.format(number(record[key])) if key in record else '':>{width}}"


def row(record: Record) -> str:
    memory = readable_bytes(number(record["memory_bytes"])) if "memory_bytes" in record else ""
    mfu = f"{100 * number(record['mfu']):.1f}%" if "mfu" in record else ""
    return " ".join([cell(record, "step", "{:.0f}", 8), cell(record, "loss", "{:.4f}", 9),
                     cell(record, "valid_loss", "{:.4f}", 9), cell(record, "lr", "{:.2e}", 9),
                     cell(record, "grad_norm", "{:.3f}", 8), cell(record, "step_ms", "{:.1f}", 8),
                     cell(record, "tokens_per_second", "{:,.0f}", 9), f"{mfu:>6}", f"{memory:>10}",
                     cell(record, "skipped", "{:.0f}", 7)])


def new_records(tail: Tail) -> Iterator[Record]:
    for line in tail.lines():
        record = parse_record(line)
        if record is not None:
            yield record


def follow(run: Path, interval: float = 0.5, sink: TextIO = sys.stdout) -> None:
    """Print rows until the run writes its summary."""
    check_run(run)
    tail = Tail(run / "metrics.jsonl")
    rows = 0
    while True:
        finished = (run / "summary.json").is_file()  # looked for first, so that no last line is missed
        for record in new_records(tail):
            if rows % ROWS_BETWEEN_HEADERS == 0:
                print(HEADER, file=sink)
            print(row(record), file=sink, flush=True)
            rows += 1
        if finished:
            return
        time.sleep(interval)
