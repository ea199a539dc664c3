"""A number of bytes that threads share: a thread that needs more waits until others are done."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition


def release_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    It keeps blocks of up to 32 MB for the thread that freed them, and Pillow's have 16 MB: each
    decoding thread would hold the memory of its largest picture.
    """
    with suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        ctypes.CDLL(None).malloc_trim(0)


class MemoryBudget:
    """Bytes that may be in use at once.

    A thread that holds some of a budget must not ask for more of it, or two threads could wait for
    each other.

    Args:
        total: bytes; a larger claim counts as this many, and so has the budget to itself.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Holds `count` bytes while the block runs; waits until they are free."""
        count = min(count, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + count <= self.total)
            self._used += count
        try:
            yield
        finally:
            with self._changed:
                self._used -= count
                self._changed.notify_all()
