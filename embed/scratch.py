"""Temporary folders that are removed even after a kill: by the next process that makes one.

Each folder has a lock that its process holds, which the system frees when the process ends, however
it ends. A folder whose lock is free is left over.
"""

from __future__ import annotations

import os
import re
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from lmk.embed.errors import storage_errors
from lmk.embed.files import try_lock

_LOCK = ".lmk-lock"
_NAME = re.compile(r"lmk-[a-z]+-[A-Za-z0-9_]{8}")


class ScratchFolder:
    """A temporary folder, removed by `close`, with the object, or after a kill by the next one.

    Attributes:
        path: the folder.

    Args:
        purpose: part of its name, lower-case letters.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, purpose: str) -> None:
        sweep_scratch()
        with storage_errors(gettempdir()):
            self.path, lock = _make(purpose)
        self.close = weakref.finalize(self, _remove, self.path, lock, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep_scratch() -> None:
    """Removes the temporary folders of this user's processes that have ended."""
    with suppress(OSError):
        for item in list(Path(gettempdir()).iterdir()):
            if _NAME.fullmatch(item.name):
                with suppress(OSError):
                    _sweep(item)


def _make(purpose: str) -> tuple[Path, int]:
    while True:
        path = Path(mkdtemp(prefix=f"lmk-{purpose}-"))
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if try_lock(lock) and (path / _LOCK).exists():  # else a sweep came in between
            return path, lock
        os.close(lock)


def _sweep(path: Path) -> None:
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.geteuid():
        return
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(path / _LOCK, flags)  # FileNotFoundError: made just now, or not by this program
    try:
        if try_lock(lock):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _remove(path: Path, lock: int, process: int) -> None:
    if os.getpid() == process:  # a forked process ends before the one it comes from
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)
