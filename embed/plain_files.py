"""Plain files, opened without waiting and, inside a folder, without following a link.

An index may come from somebody else. A link in it leads out of it; a pipe, socket or device never
ends or never answers. Files inside an index are therefore opened component by component below its
folder (`below`), which itself may be reached by links. Files that a user names may be links.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_DEPTH = 16  # folders inside each other; an index has four
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotPlainError(OSError):
    """A file inside a folder is a link, or no plain file.

    Args:
        what: a description such as "is a link".
        path: the path of the file.
    """

    def __init__(self, what: str, path: str | os.PathLike[str]) -> None:
        super().__init__(errno.ELOOP, what, os.fspath(path))


def open_plain(path: Path, flags: int = os.O_RDONLY, *, below: Path | None = None) -> int:
    """Opens a plain file, and returns its descriptor; a pipe without a writer does not block.

    Args:
        path: the file.
        flags: flags of os.open; flags that make it safe are added.
        below: a folder that holds the file; no component below it may be a link. None: links are
            followed.

    Raises:
        NotPlainError: the path is no plain file, or contains a link below `below`.
        OSError: see os.open.
    """
    if below is None:
        return _open(os.fspath(path), flags, path)
    with open_folder(path.parent, below=below) as folder, _named(path):
        return _open(path.name, flags | os.O_NOFOLLOW, path, folder)


def read_plain(path: Path, *, below: Path | None = None) -> bytes:
    """Returns the content of a plain file; see `open_plain` for arguments and errors."""
    with os.fdopen(open_plain(path, below=below), "rb") as file:
        return file.read()


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text (ValueError, also for one that is nested too deep)."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


@contextmanager
def open_folder(folder: Path, *, below: Path, create: bool = False) -> Iterator[int]:
    """Opens a folder below another one without following a link, for the `dir_fd` of os calls.

    Args:
        folder: the folder to open.
        below: a parent of `folder`, or `folder` itself; it may be reached by links.
        create: create the missing folders below `below`.

    Raises:
        NotPlainError: there is a link below `below`.
        OSError: see os.open.
    """
    here, path = os.open(below, _FOLDER & ~os.O_NOFOLLOW), below
    try:
        for part in folder.relative_to(below).parts:
            path = path / part
            with _named(path):
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=here)
                _require_plain(os.stat(part, dir_fd=here, follow_symlinks=False).st_mode, path)
                inner = os.open(part, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)


def make_folder(folder: Path, *, below: Path) -> None:
    """Creates a folder and its parents; no component below `below` may be a link (OSError)."""
    below.mkdir(parents=True, exist_ok=True)
    with open_folder(folder, below=below, create=True):
        pass


def require_plain_tree(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Checks that entries of a folder, and all below them, are plain files and folders.

    Entries that disappear meanwhile, and folders that cannot be read, are ignored.

    Args:
        folder: the folder, which may be reached by links.
        wanted: returns whether the entry of `folder` with a name is checked.

    Raises:
        NotPlainError: an entry is something else, or folders are nested too deep.
    """
    todo: list[tuple[str, int]] = [(os.fspath(folder), 0)]
    while todo:
        path, depth = todo.pop()
        if depth > _DEPTH:
            raise NotPlainError("is nested too deep", path)
        inner = _inner_folders(path, wanted if not depth else lambda name: True)
        todo += [(one, depth + 1) for one in inner]


def _inner_folders(path: str, wanted: Callable[[str], bool]) -> list[str]:
    """Returns the folders in a folder, after a check of its entries; see require_plain_tree."""
    folders: list[str] = []
    gone = (FileNotFoundError, NotADirectoryError, PermissionError)
    with suppress(*gone), os.scandir(path) as entries:
        for entry in entries:
            if not wanted(entry.name):
                continue
            if entry.is_file(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                with suppress(FileNotFoundError):
                    _require_plain(entry.stat(follow_symlinks=False).st_mode, entry.path)
    return folders


def _open(name: str, flags: int, path: Path, folder: int | None = None) -> int:
    """Opens a plain file by its name in a folder, with a check before and after."""
    follow = not flags & os.O_NOFOLLOW
    with suppress(FileNotFoundError):  # opening a device can move it
        _require_file(os.stat(name, dir_fd=folder, follow_symlinks=follow).st_mode, path)
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        _require_file(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_file(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
    _require_plain(mode, path)


def _require_plain(mode: int, path: str | os.PathLike[str]) -> None:
    if stat.S_ISLNK(mode):
        raise NotPlainError("is a link", path)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise NotPlainError("is a pipe, a socket or a device", path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Replaces the relative name in an error by the whole path."""
    try:
        yield
    except NotPlainError:
        raise
    except OSError as error:
        error.filename = os.fspath(path)
        raise
