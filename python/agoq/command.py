"""What every command shares: errors meant for the user, and how they end a command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. The message says what, where, and what to do."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An operating system's error that names no file, as of a full disk, gets the name of this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or os.fspath(path)
        raise


def printable(text: str) -> str:
    """Text that is valid UTF-8, also where a file's name is not, or holds half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def escaped(text: object) -> str:
    """Fit for a terminal: what files and names may hold that would steer one, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in str(text))


def how_to_get_packages() -> str:
    root = Path(__file__).resolve().parents[2]
    requirements = root / "python" / "requirements.txt"
    install = f"{sys.executable} -m pip install -r {requirements}"
    command = f"make -C {root} venv" if (root / "Makefile").is_file() else install
    return f"run `{command}`, or set AGOQ_PYTHON to a Python that has what {requirements} lists"


def run_command(name: str, main: Callable[[], None]) -> None:
    """Run a command's main; what the user can put right becomes one line on stderr and exit status 1, no traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        main()
        print(end="", flush=True)
    except ModuleNotFoundError as error:
        sys.exit(f"agoq {name}: error: {sys.executable} lacks the package '{error.name}': {how_to_get_packages()}")
    except UserError as error:
        sys.exit(f"agoq {name}: error: {escaped(error)}")
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as in `agoq ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"agoq {name}: error: {escaped(where)}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError:
        sys.exit(f"agoq {name}: error: out of memory")
    except BaseException as error:  # also what libraries in Rust raise, which is no Exception
        if isinstance(error, SystemExit) or os.environ.get("AGOQ_TRACEBACK"):
            raise
        sys.exit(f"agoq {name}: error: {type(error).__name__}: {escaped(error)}\nThis is a fault of AGoQ. Please report it with "
                 "what the same command prints with AGOQ_TRACEBACK=1 in the environment")
