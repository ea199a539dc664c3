"""Free memory of the machine, or of the container of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_NEW = ("memory.max", "memory.current")  # files of a control group, of version 2 and 1
_OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_UNKNOWN = 4 * 2**30


def free_memory() -> int:
    """Returns the bytes of memory that are available without swapping; 4 GiB if unknown.

    The number is the smaller one of the free memory of the machine and the free memory of the
    control groups of this process. The file cache counts as free, because the system can drop it.
    """
    return min((_free_on_machine(), *_left_to_groups()))


def _free_on_machine() -> int:
    try:
        for line in _MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return _UNKNOWN


def _left_to_groups() -> Iterator[int]:
    try:
        lines = _GROUPS.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:  # NUMBER:CONTROLLERS:PATH, see `man 7 cgroups`
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, files = (_MOUNT / "memory", _OLD) if controllers else (_MOUNT, _NEW)
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):  # each group may limit the groups in it
            left = _left(mount / group, *files)
            if left is not None:
                yield left


def _left(group: Path, limit: str, usage: str) -> int | None:
    """Returns the bytes that a group may still use; None without a group or a limit."""
    try:
        allowed, used = (int((group / name).read_text("ascii")) for name in (limit, usage))
        lines = (group / "memory.stat").read_text("ascii").splitlines()
        stat = dict(line.split() for line in lines)
        files = [
            int(stat.get(f"total_{name}", stat.get(name, 0)))  # version 1 has both, total_ for all
            for name in ("active_file", "inactive_file")
        ]
    except (OSError, ValueError):  # "max" is no number
        return None
    return max(0, allowed - max(0, used - sum(files)))
