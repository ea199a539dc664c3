"""Names in the folder of a gallery, and the check that all are plain files and folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lmk.embed.errors import UnsafeIndex
from lmk.embed.files import LEFTOVER
from lmk.embed.plain_files import NotPlainError, require_plain_tree

CATALOG = "catalog.db"
LOCK = ".lock"
BESIDE = ("", "-wal", "-shm")  # suffixes of SQLite's files
CACHE = "cache"
# The folders whose files the catalog names, and the form of the names.
NAMED = {
    "segments": re.compile(r"[0-9]{6,}\.f(16|32)"),
    "arrays": re.compile(r"[0-9]{6,}\.bin"),
    "embedder": re.compile(r"\.?[0-9a-f]{16}(-[0-9]{6,})?/.*", re.DOTALL),
}


def refuse_links(folder: Path, wanted: Callable[[str], bool] | None = None) -> None:
    """Checks that there is no link, pipe, socket or device in a gallery.

    Entries with names that lmk does not use are ignored.

    Args:
        folder: the gallery folder. It may be reached by links, and may be missing.
        wanted: returns whether the entry with a name is checked. Default: all names of lmk.

    Raises:
        UnsafeIndex: there is one; the error names it.
    """
    try:
        require_plain_tree(folder, wanted or is_name_of_ours)
    except NotPlainError as error:
        what = f"{error.strerror}, and an index may hold plain files and folders only"
        remedy = "delete it, then see `lmk index verify`"
        raise UnsafeIndex(what, where=error.filename, remedy=remedy) from error


def is_name_of_ours(name: str) -> bool:
    """Returns whether lmk gives this name to an entry of a gallery's folder."""
    return name in {LOCK, CACHE, *NAMED} or name.startswith(CATALOG)


def is_ours(path: str) -> bool:
    """Returns whether lmk gives this relative path to a file in a folder of NAMED."""
    top, _, rest = path.partition("/")
    return bool(NAMED[top].fullmatch(rest) or ("/" not in rest and LEFTOVER.fullmatch(rest)))


def stays_inside(path: str) -> bool:
    """Returns whether a relative path in a catalog stays below its folder."""
    parts = PurePosixPath(path).parts
    plain = path and "\0" not in path and not path.startswith("/")
    return bool(plain and parts and ".." not in parts)
