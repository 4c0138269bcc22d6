"""What every command shares: errors meant for the user, and how they end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. The message says what, where, and what to do."""


def how_to_get_packages() -> str:
    root = Path(__file__).resolve().parents[2]
    requirements = root / "python" / "requirements.txt"
    install = f"{sys.executable} -m pip install -r {requirements}"
    command = f"make -C {root} venv" if (root / "Makefile").is_file() else install
    return f"run `{command}`, or set AGOQ_PYTHON to a Python that has what {requirements} lists"


def run_command(name: str, main: Callable[[], None]) -> None:
    """Run a command's main; what the user can put right becomes one line on stderr and exit status 1, no traceback."""
    try:
        main()
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] == "agoq":
            raise
        sys.exit(f"agoq {name}: error: {sys.executable} lacks the package '{error.name}': {how_to_get_packages()}")
    except UserError as error:
        sys.exit(f"agoq {name}: error: {error}")
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as in `agoq ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"agoq {name}: error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)
