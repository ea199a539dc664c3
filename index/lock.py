"""One writer at a time: the folder a gallery is written to, and the lock in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lmk.embed.errors import GalleryLocked, UsageError, storage_errors
from lmk.embed.files import sync_folder
from lmk.index.database import CATALOG

FOLDERS = ("segments", "arrays", "embedder")  # of the files the catalog names; never cache/
OURS = {*FOLDERS, "cache", ".lock", CATALOG, f"{CATALOG}-wal", f"{CATALOG}-shm"}


def make_folder(folder: Path) -> None:
    """Makes the folder of a gallery, refusing one that holds something else."""
    with storage_errors(folder):
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError("this is a file, and a gallery is a folder", where=folder) from error
        found = {item.name for item in folder.iterdir()}
        if CATALOG not in found and found - OURS:
            raise UsageError(
                f"the folder holds something else ({min(found - OURS)})",
                where=folder,
                remedy="give the gallery a folder of its own, such as NAME.lmk",
            )
        if new:
            sync_folder(folder.parent)


def take_lock(folder: Path) -> int:
    """Locks the gallery; the kernel frees the lock when the process ends, however it ends.

    Returns:
        The descriptor that holds the lock; closing it frees the lock.

    Raises:
        GalleryLocked: another process, or another writer in this one, holds it.
    """
    path = folder / ".lock"
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {pid}" if pid else "another process"
            raise GalleryLocked(
                f"{who} is writing to it", where=folder, remedy="wait until it has ended"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor
