#!/usr/bin/env python3
"""Run clang-tidy over src/, several batches at a time; a batch that passed is not run again until what it reads changes.

    tools/lint.py BUILD [FILE...]    BUILD: a folder configured for clang in batches (AGOQ_UNITY, cmake/AgoqFloors.cmake)

A batch of eight sources takes as long as two of them: most of the time goes into the headers that all include. With FILEs
only these are looked at, each by itself. A pass is remembered under the hash of the preprocessed file with its comments (NOLINT is one), the configuration and the
version of clang-tidy, in ~/.cache/agoq-lint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agoq-lint"
CLANG_TIDY = shutil.which("clang-tidy-14") or shutil.which("clang-tidy")


def capture(command: list[str], folder: Path) -> bytes:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout


def preprocess_command(entry: dict[str, str]) -> list[str]:
    """The compiler's command line, made to print the preprocessed source without the places of this checkout."""
    words = shlex.split(entry["command"])
    words = words[next(i for i, word in enumerate(words) if "clang" in Path(word).name) :]  # past ccache
    output = words.index("-o")
    return [word for word in words[:output] + words[output + 2 :] if word != "-c"] + ["-E", "-C", "-P", "-w"]


def lint(entry: dict[str, str], configuration: bytes, build: Path) -> str | None:
    """What clang-tidy has to say about one source or batch; None if nothing."""
    folder = Path(entry["directory"])
    key = hashlib.sha256(configuration + capture(preprocess_command(entry), folder)).hexdigest()
    if (CACHE / key).exists():
        return None
    # A batch includes sources, on purpose.
    done = subprocess.run([CLANG_TIDY, "--quiet", "--checks=-bugprone-suspicious-include", "-p", build, entry["file"]],
                          cwd=ROOT, text=True, capture_output=True)
    if done.returncode == 0:
        (CACHE / key).touch()
        return None
    return done.stdout + ("" if done.stdout else done.stderr)


def alone(entry: dict[str, str], source: Path) -> dict[str, str]:
    """The command of another source of the project, whose flags are the same."""
    return entry | {"file": str(source), "command": entry["command"].replace(entry["file"], str(source))}


def main() -> None:
    if CLANG_TIDY is None:
        sys.exit("tools/lint.py: clang-tidy is missing; tools/install.sh check installs it")
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    build = Path(sys.argv[1]).resolve()
    commands = json.loads((build / "compile_commands.json").read_text())
    folders = (ROOT / "src", build / "batches")
    entries = [entry for entry in commands if any(Path(entry["file"]).is_relative_to(folder) for folder in folders)]
    if len(sys.argv) > 2:
        entries = [alone(entries[0], Path(name).resolve()) for name in sys.argv[2:]]
    CACHE.mkdir(parents=True, exist_ok=True)
    configuration = (ROOT / ".clang-tidy").read_bytes() + capture([CLANG_TIDY, "--version"], ROOT)
    start = time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count() or 1))) as pool:
        findings = list(filter(None, pool.map(lambda entry: lint(entry, configuration, build), entries)))
    print("\n".join(findings), end="")
    print(f"clang-tidy: {len(entries)} batches and files, {len(findings)} with findings, {time.monotonic() - start:.0f} s")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
