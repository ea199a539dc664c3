"""Types of the callables that report progress and messages, each with a default that does nothing.

`Progress` receives (stage, done, total), `Count` receives (done), `CountOfTotal` receives
(done, total) and `Message` receives one line of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
Count: TypeAlias = Callable[[int], None]
CountOfTotal: TypeAlias = Callable[[int, int], None]
Message: TypeAlias = Callable[[str], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignores the progress of a stage."""


def no_count(done: int) -> None:
    """Ignores a count."""


def no_count_of_total(done: int, total: int) -> None:
    """Ignores a count of a known total."""


def no_message(text: str) -> None:
    """Ignores a message."""
