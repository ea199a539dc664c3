"""Files that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from lmk.embed.errors import storage_errors
from lmk.embed.plain_files import open_folder

# What a killed `write_whole` leaves behind is called so: .NAME.0123456789abcdef.part
LEFTOVER = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)


def write_whole(
    path: Path, content: bytes | Iterable[bytes | memoryview], *, below: Path | None = None
) -> None:
    """Writes a file durably; a reader sees what was there before or all of the new, never a piece.

    Args:
        path: the file; what was there is replaced, a link itself and not what it leads to. Its
            folder must exist.
        content: all of it, or its pieces in order.
        below: a folder that holds the file; no component below it may be a link. None: the folder
            of the file may be reached by links.

    Raises:
        StorageError: the disk is full or the folder cannot be written. After this or any other
            exception `path` is as it was and nothing else is left; a killed process may leave
            one file more (`remove_leftovers`, LEFTOVER).
    """
    # A name of its own: two processes that write the same file do not write into each other's.
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
    """Removes what killed processes left of writing `path`; only for who alone writes it."""
    for item in path.parent.iterdir():
        if item.name.startswith(_prefix(path)) and LEFTOVER.fullmatch(item.name):
            item.unlink(missing_ok=True)


def stamp(path: Path) -> str:
    """Returns what changes when a file is written or replaced, also with its old modification time.

    Raises:
        OSError: as os.lstat.
    """
    found = path.lstat()
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."  # a name has at most 255 bytes, a letter at most 4
