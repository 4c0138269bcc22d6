#!/usr/bin/env python3
"""Fails where a floor of src/ includes a higher one, or where rooms (the folders of a floor) include each other in a circle.

    tools/check_layers.py

The order of the floors is that of CMakeLists.txt. A file that lies in no room of its floor counts as a room
of its own, a header apart from its source: what a source includes does not bind those who include its header.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


def floors() -> list[str]:
    return re.findall(r"^agoq_floor\((\w+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)


def room_of(path: Path) -> tuple[str, str]:
    """src/ops/norm/rms_norm.h -> ops, norm; src/ops/cpu.h -> ops, cpu.h"""
    floor, *rooms, name = path.relative_to(SOURCE).parts
    return floor, "/".join(rooms) or name


def main() -> None:
    order = floors()
    problems = []
    above: dict[str, dict[str, set[str]]] = {floor: defaultdict(set) for floor in order}  # floor: room -> rooms it includes
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
            continue
        floor, room = room_of(path)
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            included = SOURCE / name
            if not included.exists():
                continue
            other, other_room = room_of(included)
            if order.index(other) > order.index(floor):
                problems.append(f"{path.relative_to(ROOT)} includes {name}, which is of a higher floor")
            elif other == floor and other_room != room:
                above[floor][room].add(other_room)
    for floor, graph in above.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            problems.append(f"rooms of {floor} include each other in a circle: {' -> '.join(error.args[1])}")
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
