"""The names in the folder of a gallery, and the check that all are plain files and folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lmk.embed.errors import UnsafeIndex
from lmk.embed.files import LEFTOVER
from lmk.embed.plain_files import NotPlainError, require_plain_tree

CATALOG = "catalog.db"
LOCK = ".lock"
BESIDE = ("", "-wal", "-shm")  # what SQLite keeps beside a file
CACHE = "cache"
# The files the catalog names, and what a killed writer leaves of them; never cache/.
NAMED = {
    "segments": re.compile(r"[0-9]{6,}\.f(16|32)"),
    "arrays": re.compile(r"[0-9]{6,}\.bin"),
    "embedder": re.compile(r"\.?[0-9a-f]{16}(-[0-9]{6,})?/.*", re.DOTALL),
}


def refuse_links(folder: Path, wanted: Callable[[str], bool] | None = None) -> None:
    """Checks that there is no link, pipe, socket or device in a gallery.

    Only what lmk itself looks at counts: other names in the folder are never touched.

    Args:
        folder: of the gallery; it may be reached by links, and may be missing.
        wanted: says by its name whether an entry is looked at; all of ours unless given.

    Raises:
        UnsafeIndex: names the first one.
    """
    try:
        require_plain_tree(folder, wanted or is_name_of_ours)
    except NotPlainError as error:
        what = f"{error.strerror}, and an index may hold plain files and folders only"
        remedy = "delete it, then see `lmk index verify`"
        raise UnsafeIndex(what, where=error.filename, remedy=remedy) from error


def is_name_of_ours(name: str) -> bool:
    """Returns whether an entry of a gallery's folder has a name that lmk gives."""
    return name in {LOCK, CACHE, *NAMED} or name.startswith(CATALOG)


def is_ours(path: str) -> bool:
    """Returns whether a path, relative to the gallery and in a folder of NAMED, is of our form."""
    top, _, rest = path.partition("/")
    return bool(NAMED[top].fullmatch(rest) or ("/" not in rest and LEFTOVER.fullmatch(rest)))


def stays_inside(path: str) -> bool:
    """Returns whether a path of a catalog stays below the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    plain = path and "\0" not in path and not path.startswith("/")
    return bool(plain and parts and ".." not in parts)
