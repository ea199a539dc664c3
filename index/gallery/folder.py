"""The folder of a gallery: its creation, and the removal of old files.

A folder may contain files of the user, even under names such as `segments`. Nothing is written to a
folder that is not recognised as a gallery, and only files with the exact names of lmk are removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from itertools import chain, count
from pathlib import Path

from lmk.embed.errors import UsageError, storage_errors
from lmk.embed.files import sync_folder
from lmk.embed.plain_files import read_plain
from lmk.index.catalog.database import has_our_header
from lmk.index.catalog.layout import BESIDE, CACHE, CATALOG, LOCK, NAMED, is_ours, refuse_links
from lmk.index.catalog.lock import is_process_id
from lmk.index.vectors.derived_files import DerivedFiles

_DAMAGED = f"{CATALOG}.damaged"
_ASIDE = re.compile(rf"{re.escape(_DAMAGED)}(\.[0-9]+)?(-wal|-shm)?")


def make_folder(folder: Path) -> None:
    """Creates the folder of a gallery.

    Raises:
        UsageError: the path holds something else. A folder without a catalog of lmk must be empty,
            or contain only files of a build that was killed before its first commit.
        UnsafeIndex: the gallery contains a link or a special file.
    """
    with storage_errors(folder):
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError("this is a file, and a gallery is a folder", where=folder) from error
        if os.path.lexists(folder / CATALOG):
            refuse_links(folder)
        strange = None if has_our_header(folder) else _in_the_way(folder)
        if strange is not None:
            raise UsageError(
                f"the folder holds something else ({strange})",
                where=folder,
                remedy="give the gallery a folder of its own, such as NAME.lmk",
            )
        refuse_links(folder)
        if new:
            sync_folder(folder.parent)


class SetAside:
    """A catalog that cannot be read, renamed to catalog.db.damaged (or .damaged.1, ...).

    No file is replaced; older damaged catalogs stay until `settle`.

    Args:
        folder: the gallery folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = chain([_DAMAGED], (f"{_DAMAGED}.{number}" for number in count(1)))
        self._name = next(name for name in names if not os.path.lexists(folder / name))
        self._move(CATALOG, self._name)  # the catalog before its log, which is useless without it

    def settle(self) -> None:
        """Renames this catalog to catalog.db.damaged, in place of older ones, after the commit."""
        with storage_errors(self._folder):
            if self._name != _DAMAGED:
                self._move(self._name, _DAMAGED)
            for item in list(self._folder.iterdir()):
                if item.name.startswith(f"{_DAMAGED}.") and _ASIDE.fullmatch(item.name):
                    item.unlink()

    def undo(self) -> None:
        """Restores this catalog in place of a new one without a commit."""
        self._move(self._name, CATALOG)

    def _move(self, old: str, new: str) -> None:
        with storage_errors(self._folder):
            for beside in BESIDE:
                if (self._folder / f"{old}{beside}").exists():
                    (self._folder / f"{old}{beside}").replace(self._folder / f"{new}{beside}")
                elif beside:
                    (self._folder / f"{new}{beside}").unlink(missing_ok=True)
            sync_folder(self._folder)


def search_files(folder: Path) -> DerivedFiles:
    """Returns the files that searches of a gallery derive from its vectors."""
    return DerivedFiles(folder / CACHE / "search", below=folder)


def next_number(folder: Path) -> int:
    """Returns a number above those of all existing files, for a gallery without a catalog."""
    files = (re.match("([0-9]+)", path.rpartition("/")[2]) for path in _files(folder))
    folders = (re.search("-([0-9]+)$", item.name) for item in (folder / "embedder").glob("*-*"))
    return 1 + max((int(match[1]) for match in (*files, *folders) if match), default=0)


def sweep(folder: Path, named: Container[str]) -> None:
    """Removes the files of lmk that the catalog does not name.

    Args:
        folder: the gallery.
        named: the paths that the catalog names, relative to the gallery.
    """
    with storage_errors(folder):
        for path in _files(folder):
            if path not in named and is_ours(path):
                (folder / path).unlink(missing_ok=True)
        for top in sorted((folder / "embedder").glob("*/")):
            if is_ours(f"embedder/{top.name}/") and not top.is_symlink():
                for below, _, _ in os.walk(top, topdown=False):
                    if not os.listdir(below):  # noqa: PTH208
                        Path(below).rmdir()


def _in_the_way(folder: Path) -> str | None:
    """Returns the first name in a folder that is not of lmk, or None."""
    allowed = {CACHE}
    if _has_lock(folder):  # the first file that lmk writes
        allowed |= {LOCK, *NAMED}
        allowed |= {f"{CATALOG}{beside}" for beside in BESIDE}
        allowed |= {item.name for item in folder.iterdir() if _ASIDE.fullmatch(item.name)}
    for item in sorted(folder.iterdir()):
        if item.is_symlink() or item.name not in allowed:  # a link may lead to files of others
            return item.name
        if item.is_dir() != (item.name in {CACHE, *NAMED}):
            return item.name
    return next((path for path in _files(folder) if not is_ours(path)), None)


def _has_lock(folder: Path) -> bool:
    try:
        return is_process_id(read_plain(folder / LOCK, below=folder)[:32])
    except OSError:
        return False


def _files(folder: Path) -> Iterator[str]:
    """Yields relative paths of the files in the folders whose files the catalog names."""
    for name in NAMED:
        for below, _, files in os.walk(folder / name):
            base = Path(below).relative_to(folder)
            yield from ((base / file).as_posix() for file in sorted(files))
