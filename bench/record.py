#!/usr/bin/env python3
"""Runs a benchmark and writes what it prints to bench/results/NAME.md, with all that a figure needs to be one: the command,
the machine, the date, the commit, and how busy the machine was.

  bench/record.py gradient_error build/bench/gradient_error runs/demo --data runs/demo-text.txt
"""

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MACHINE_PATH = re.compile(r"^(--[\w-]+=)?/(?:.*/)?")  # an absolute path but for its last name, maybe behind --option=


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", help="a sentence on the conditions, to be written beside them")
    parser.add_argument("name", help="of the file in bench/results")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, from the root of the repository")
    options = parser.parse_args()
    if not options.command:
        parser.error("no command to run")
    refuse_machine_paths(parser, options.command)
    conditions = machine() | {"load at the start": f"{os.getloadavg()[0]:.2f}"}
    done = subprocess.run(options.command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(options.command)} failed with status {done.returncode}; nothing is written")
    if options.note:
        conditions["note"] = options.note
    path = ROOT / "bench" / "results" / f"{options.name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(document(options, conditions, done.stdout))
    print(done.stdout, end="")
    print(f"\nwritten to {path.relative_to(ROOT)}", file=sys.stderr)


def refuse_machine_paths(parser, command):
    if absolute := [word for word in command if MACHINE_PATH.match(word)]:
        parser.error(f"a path that only this machine has would be written down: {absolute[0]}; use one from the repository's root")


def without_machine_paths(command):
    """Of each such path only the last name."""
    return [MACHINE_PATH.sub(r"\1", word) for word in command]


def machine():
    return {"CPU": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores", "system": system(), "commit": commit(),
            "date": datetime.date.today().isoformat()}


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def system():
    release = platform.freedesktop_os_release()
    return f"{release.get('PRETTY_NAME', platform.system())}, {platform.machine()}"


def commit():
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def document(options, conditions, output):
    facts = "\n".join(f"- {name}: {value}" for name, value in conditions.items())
    return f"# {options.name}\n\n```sh\n{shlex.join(options.command)}\n```\n\n{facts}\n\n{output.strip()}\n"


if __name__ == "__main__":
    main()
