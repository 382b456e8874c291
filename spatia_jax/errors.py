"""What goes wrong at the door, and what a command says of it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(Exception):
    """Input that cannot be used: one line that says what was wrong, where, and what would be right."""


def exit_status(command: Callable[[], None]) -> int:
    """Runs a command; bad input becomes one line on standard error and status 2."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
