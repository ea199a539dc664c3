"""The memory of the machine."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_UNKNOWN = 4 * 2**30


def free_memory() -> int:
    """Returns the bytes of memory that can be had without swapping; 4 GiB where nothing says."""
    try:
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return _UNKNOWN
