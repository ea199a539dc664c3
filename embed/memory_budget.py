"""Memory budget shared by threads: a thread waits until its bytes are free."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition


def release_memory() -> None:
    """Returns freed memory to the system, if the C library supports it (glibc).

    glibc keeps freed blocks of up to 32 MB for their thread, and Pillow's blocks have 16 MB. Each
    decoding thread would hold the memory of its largest picture.
    """
    with suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        ctypes.CDLL(None).malloc_trim(0)


class MemoryBudget:
    """Limit on the number of bytes in use at once.

    A thread that holds bytes of a budget must not request more of it, or two threads could wait
    for each other.

    Args:
        total: number of bytes. A larger request counts as `total` and uses the whole budget.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Waits until `count` bytes are free, and holds them while the block runs."""
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
