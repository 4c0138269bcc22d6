#!/usr/bin/env python3
"""Run clang-tidy over src/, several batches at a time; a batch that passed is not run again until what it reads changes.

    tools/lint.py BUILD [FILE...]    BUILD: a folder configured for clang in batches (AGOQ_UNITY, cmake/AgoqFloors.cmake)

A batch of eight sources takes as long as two of them: most of the time goes into the headers that all include. With FILEs
only these are looked at, each by itself. clang-tidy looks for unused `using` in the file itself alone, which a batch is
not; so this script does.

A pass is remembered in ~/.cache/agoq-lint under a hash of the preprocessed file with its comments (NOLINT is one), the
configuration and the version of clang-tidy.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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


def unused_usings() -> list[str]:
    """`using agoq::name;` and `namespace name = ...;` of sources that do not name it again."""
    findings = []
    for path in sorted((ROOT / "src").rglob("*.c[cu]")):
        text = re.sub(r"//.*", "", path.read_text())
        for match in re.finditer(r"^ *(?:using [\w:]+::(\w+)|namespace (\w+) = [\w:]+);", text, re.MULTILINE):
            name = match[1] or match[2]
            if len(re.findall(rf"\b{name}\b", text)) < 2:
                line = text.count("\n", 0, match.start()) + 1
                findings.append(f"{path.relative_to(ROOT)}:{line}: {name} is not used")
    return findings


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
    if not entries:
        sys.exit(f"tools/lint.py: {build} has no commands for sources of this checkout")
    if len(sys.argv) > 2:
        entries = [alone(entries[0], Path(name).resolve()) for name in sys.argv[2:]]
    CACHE.mkdir(parents=True, exist_ok=True)
    configuration = (ROOT / ".clang-tidy").read_bytes() + capture([CLANG_TIDY, "--version"], ROOT)
    start = time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count() or 1))) as pool:
        findings = list(filter(None, pool.map(lambda entry: lint(entry, configuration, build), entries)))
    findings += unused_usings()
    print("\n".join(findings), end="")
    print(f"clang-tidy: {len(entries)} batches and files, {len(findings)} with findings, {time.monotonic() - start:.0f} s")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
