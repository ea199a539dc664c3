"""Verification of files in cache/, which have checksums of their own, and of the catalog's end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from lmk.embed.extract.feature_store import INDEX_SUFFIX, is_shard
from lmk.embed.local.features import LOCAL_SUFFIX
from lmk.embed.plain_files import open_plain, read_plain
from lmk.index.catalog.database import connect, sqlite_errors
from lmk.index.catalog.layout import CACHE, CATALOG
from lmk.index.catalog.limits import size_of
from lmk.index.gallery.folder import search_files

_HEX_DIGEST, _DIGEST = 64, 32
_STORES = ("features", "photos")


def damaged_cache(folder: Path) -> Iterator[Path]:
    """Yields the files in cache/ that have changed since they were written.

    Args:
        folder: the gallery, which must not contain links.
    """
    derived = search_files(folder)
    for name in derived.names():
        if derived.damaged(name):
            yield folder / CACHE / "search" / name
    for store in _STORES:
        for item in _items(folder / CACHE / store):
            if item.name.endswith(INDEX_SUFFIX):
                if not _begins_with_digest(item, folder, _HEX_DIGEST):
                    yield item
                continue
            yield from (
                shard for shard in _items(item) if is_shard(shard.name) and _is_other(shard, folder)
            )
    for item in _items(folder / CACHE / "local"):
        if item.name.endswith(LOCAL_SUFFIX) and not _begins_with_digest(item, folder, _DIGEST):
            yield item


def bytes_behind(folder: Path) -> int:
    """Returns the number of bytes behind the end of the catalog, which SQLite never reads.

    The header of the file has the position of the end; pages in the log are not counted.
    """
    path = folder / CATALOG
    with sqlite_errors(folder), closing(connect(path, "mode=ro&immutable=1")) as connection:
        end = size_of(connection)
        return max(path.lstat().st_size - end, 0)


def drop_cached(folder: Path, path: Path) -> None:
    """Removes a file in cache/, and its note if there is one."""
    if path.parent == folder / CACHE / "search":
        search_files(folder).remove(path.name)
    else:
        with suppress(OSError):
            path.unlink()


def _items(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _is_other(shard: Path, folder: Path) -> bool:
    """Returns whether the content of a shard differs from its name; False if it does not exist."""
    try:
        with os.fdopen(open_plain(shard, below=folder), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != shard.stem
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        return True


def _begins_with_digest(path: Path, folder: Path, size: int) -> bool:
    """Returns whether a file begins with the SHA-256 of its rest, in bytes or in hexadecimal."""
    try:
        content = read_plain(path, below=folder)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    digest = hashlib.sha256(content[size:])
    return content[:size] in (digest.digest(), digest.hexdigest().encode())
