"""Atomic, durable writing of files, also through a crash or a power cut."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from lmk.embed.errors import storage_errors
from lmk.embed.plain_files import open_folder

# Name of a file that a killed `write_whole` leaves: .NAME.0123456789abcdef.part
LEFTOVER = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)


def write_whole(
    path: Path, content: bytes | Iterable[bytes | memoryview], *, below: Path | None = None
) -> None:
    """Writes a file durably; a reader sees the old content or all of the new content.

    Args:
        path: the file. An existing file is replaced; a link is replaced itself, not its target.
            The folder must exist.
        content: the whole content, or its pieces in order.
        below: a parent folder of the file. No component below it may be a link. None: the folder
            of the file may be reached by links.

    Raises:
        StorageError: the disk is full or the folder cannot be written. After any exception, `path`
            is unchanged and no other file is left. A killed process may leave one more file
            (`remove_leftovers`, LEFTOVER).
    """
    # A unique name, so that two processes may write the same file.
    part, target = f"{_prefix(path)}{secrets.token_hex(8)}.part", path.name
    with ExitStack() as held, storage_errors(path):
        if below is None:
            folder = None
            part, target = os.fspath(path.with_name(part)), os.fspath(path)
        else:
            folder = held.enter_context(open_folder(path.parent, below=below))
        try:
            with open(part, "xb", opener=_opener(folder)) as file:
                for piece in (content,) if isinstance(content, bytes) else content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(part, dir_fd=folder)
            if isinstance(error, OSError) and error.filename == part:
                error.filename, error.filename2 = os.fspath(path), None  # the name the user knows
            raise
        if folder is None:
            sync_folder(path.parent)
        else:
            os.fsync(folder)


def _opener(folder: int | None) -> Callable[[str, int], int]:
    return lambda name, flags: os.open(name, flags, 0o666, dir_fd=folder)


def remove_leftovers(path: Path) -> None:
    """Removes leftovers of killed processes for `path`; only the single writer may call it."""
    for item in path.parent.iterdir():
        if item.name.startswith(_prefix(path)) and LEFTOVER.fullmatch(item.name):
            item.unlink(missing_ok=True)


def stamp(path: Path) -> str:
    """Returns a text that changes when a file is written or replaced, even with its old time.

    Raises:
        OSError: see os.lstat.
    """
    return stamp_of(path.lstat())


def stamp_of(status: os.stat_result) -> str:
    """Returns the stamp of a file with this status; see `stamp`."""
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def try_lock(file: int | IO[Any]) -> bool:
    """Locks a file until it is closed; returns False if another process has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."  # a name has at most 255 bytes, a letter at most 4
