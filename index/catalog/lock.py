"""One writer at a time: the lock of a gallery."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

from lmk.embed.errors import GalleryError, GalleryLocked, storage_errors
from lmk.embed.files import try_lock
from lmk.embed.plain_files import open_plain
from lmk.index.catalog.layout import LOCK

_POLL_SECONDS = 0.05
_PID = re.compile(rb"[0-9\n\0]{0,31}")  # NUL: after a power cut


def take_lock(folder: Path, wait: float = 0.0) -> int:
    """Locks the gallery; the kernel frees the lock when the process ends, even by a kill.

    Args:
        folder: the gallery.
        wait: seconds to wait for the holder of the lock.

    Returns:
        The descriptor that holds the lock; closing it frees the lock.

    Raises:
        GalleryLocked: another process, or another writer in this one, holds the lock.
        GalleryError: the file contains something else than a process id; it is not changed.
    """
    path = folder / LOCK
    deadline = time.monotonic() + wait
    with storage_errors(path):
        descriptor = open_plain(path, os.O_RDWR | os.O_CREAT, below=folder)
        try:
            while not try_lock(descriptor):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _held(folder, descriptor, wait)
                time.sleep(min(_POLL_SECONDS, left))  # flock has no time limit of its own
            if not is_process_id(os.pread(descriptor, 32, 0)):
                what = "this file is not lmk's, which keeps nothing but a process id in it"
                raise GalleryError(what, where=path, remedy="move it away")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def is_process_id(content: bytes) -> bool:
    """Returns whether a lock file can hold this content."""
    return _PID.fullmatch(content) is not None


def writing(folder: Path) -> str | None:
    """Returns the holder of the lock of a gallery, or None if there is none or it is unknown.

    The check takes the lock for a moment, in which a writer that does not wait is refused.
    """
    try:
        descriptor = open_plain(folder / LOCK, below=folder)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _holder(descriptor: int) -> str:
    pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return f"process {pid}" if pid else "another process"


def _held(folder: Path, descriptor: int, waited: float) -> GalleryLocked:
    still = f"still writing to it after {waited:g} s" if waited else "writing to it"
    return GalleryLocked(
        f"{_holder(descriptor)} is {still}", where=folder, remedy="wait until it has ended"
    )
