"""The folder a gallery is written to: what may be in it, and what is swept.

A folder may hold what a user keeps there, also under names such as `segments`. Nothing is written
to a folder that is not recognised as a gallery's, and only files of our exact names are removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

from lmk.embed.errors import UsageError, storage_errors
from lmk.embed.files import LEFTOVER, sync_folder
from lmk.index.database import CATALOG, has_our_header

_DAMAGED = f"{CATALOG}.damaged"
_BESIDE = ("", "-wal", "-shm")  # what SQLite keeps beside a file
# The files the catalog names, and what a killed writer leaves of them; never cache/.
_NAMED = {
    "segments": re.compile(r"[0-9]{6,}\.f(16|32)"),
    "arrays": re.compile(r"[0-9]{6,}\.bin"),
    "embedder": re.compile(r"\.?[0-9a-f]{16}/.*", re.DOTALL),
}
_PID = re.compile(rb"([0-9]+\n)?")


def make_folder(folder: Path) -> None:
    """Makes the folder of a gallery.

    Raises:
        UsageError: where there is something else: a folder without a catalog of ours must be empty
            or hold what a build leaves that was killed before its first commit.
    """
    with storage_errors(folder):
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError("this is a file, and a gallery is a folder", where=folder) from error
        strange = None if has_our_header(folder) else _in_the_way(folder)
        if strange is not None:
            raise UsageError(
                f"the folder holds something else ({strange})",
                where=folder,
                remedy="give the gallery a folder of its own, such as NAME.lmk",
            )
        if new:
            sync_folder(folder.parent)


def set_aside(folder: Path) -> None:
    """Renames a catalog that cannot be read to catalog.db.damaged, replacing an older one."""
    with storage_errors(folder):
        for beside in _BESIDE:  # the catalog first: a log without it means nothing
            damaged = folder / f"{_DAMAGED}{beside}"
            damaged.unlink(missing_ok=True)
            if (folder / f"{CATALOG}{beside}").exists():
                (folder / f"{CATALOG}{beside}").rename(damaged)
        sync_folder(folder)


def sweep(folder: Path, named: Container[str]) -> None:
    """Removes those of our files that the catalog does not name.

    Args:
        folder: the gallery.
        named: the paths the catalog names, relative to it.
    """
    with storage_errors(folder):
        for path in _files(folder):
            if path not in named and _is_ours(path):
                (folder / path).unlink(missing_ok=True)
        for top in sorted((folder / "embedder").glob("*/")):
            if _is_ours(f"embedder/{top.name}/") and not top.is_symlink():
                for below, _, _ in os.walk(top, topdown=False):
                    if not os.listdir(below):  # noqa: PTH208
                        Path(below).rmdir()


def _in_the_way(folder: Path) -> str | None:
    """Returns the first name in a folder without a catalog of ours that is not ours either."""
    lock = folder / ".lock"
    has_lock = lock.is_file() and lock.stat().st_size <= 20 and _PID.fullmatch(lock.read_bytes())
    fine = {"cache"}
    if has_lock:  # it is the first thing that we write
        fine |= {".lock", *_NAMED}
        fine |= {f"{name}{beside}" for name in (CATALOG, _DAMAGED) for beside in _BESIDE}
    for item in sorted(folder.iterdir()):
        if item.name not in fine or item.is_dir() != (item.name in {"cache", *_NAMED}):
            return item.name
        if item.is_symlink() and item.name != "cache":  # what it leads to may be another's
            return item.name
    return next((path for path in _files(folder) if not _is_ours(path)), None)


def _files(folder: Path) -> Iterator[str]:
    """Paths, relative to the gallery, of the files in the folders whose files the catalog names."""
    for name in _NAMED:
        for below, _, files in os.walk(folder / name):
            base = Path(below).relative_to(folder)
            yield from ((base / file).as_posix() for file in sorted(files))


def _is_ours(path: str) -> bool:
    top, _, rest = path.partition("/")
    return bool(_NAMED[top].fullmatch(rest) or ("/" not in rest and LEFTOVER.fullmatch(rest)))
