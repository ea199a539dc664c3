"""Paths and names in commands that a message tells the user to type."""

from __future__ import annotations

import shlex


def shell_word(value: object) -> str:
    """A path or a name as one word of a shell: quoted where it has blanks or the like."""
    return shlex.quote(str(value))
