"""Files that are there whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lmk.embed.errors import storage_errors

# What a killed `write_whole` leaves behind is called so: .NAME.0123456789abcdef.part
LEFTOVER = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a file durably; a reader sees what was there before or all of the new, never a piece.

    Args:
        path: the file; what was there is replaced. Its folder must exist.
        content: all of it, or its pieces in order.

    Raises:
        StorageError: the disk is full or the folder cannot be written. After this or any other
            exception `path` is as it was and nothing else is left; a killed process may leave
            one file more (`remove_leftovers`, LEFTOVER).
    """
    # A name of its own: two processes that write the same file do not write into each other's.
    part = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.part")
    with storage_errors(path):
        try:
            with part.open("xb") as file:
                for piece in (content,) if isinstance(content, bytes) else content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException as error:
            with suppress(OSError):
                part.unlink()
            if isinstance(error, OSError) and error.filename == os.fspath(part):
                error.filename = os.fspath(path)  # the name the user knows
            raise
        sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of writing `path`; only for who alone writes it."""
    for item in path.parent.iterdir():
        if item.name.startswith(_prefix(path)) and LEFTOVER.fullmatch(item.name):
            item.unlink(missing_ok=True)


def stamp(path: Path) -> str:
    """Returns what changes when a file is written or replaced, also with its old modification time.

    Raises:
        OSError: as os.stat.
    """
    found = path.stat()
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
