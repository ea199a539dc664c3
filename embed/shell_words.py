"""Paths and names in commands that a message tells the user to type."""

from __future__ import annotations

import shlex


def shell_word(value: object) -> str:
    """Returns a path or a name as one word of a shell, quoted if necessary."""
    return shlex.quote(str(value))
