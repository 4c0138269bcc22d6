"""What every command shares: errors meant for the user, and how they end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right. The message says what, where, and what to do."""


def run_command(name: str, main: Callable[[], None]) -> None:
    """Run a command's main; a UserError becomes one line on stderr and exit status 1, without a traceback."""
    try:
        main()
        sys.stdout.flush()
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
