"""The memory of the machine."""

from __future__ import annotations

import os
from pathlib import Path

_UNKNOWN = 4 * 2**30


def free_memory() -> int:
    """Returns the bytes of memory that can be had without swapping; 4 GiB where nothing says."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return _UNKNOWN
