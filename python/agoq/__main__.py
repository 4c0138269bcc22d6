"""`python -m agoq COMMAND ARGUMENTS...`: the program `agoq` runs it from its own folder (src/cli/python.cc)."""

from __future__ import annotations

import sys
from importlib import import_module

from agoq.command import run_command

if __name__ == "__main__":
    name = sys.argv.pop(1)
    run_command(name, lambda: import_module(f"agoq.{name}").main())
