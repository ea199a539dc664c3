"""Limits on SQLite for a catalog, which may come from somebody else.

A catalog of another person can hold views that never end, triggers that delete, cells of a
gigabyte, or pages that many others point to, so that a small file seems to have endless rows. Only
the exact tables of a known format are read. No statement may give more bytes than the file has, or
take more steps than a file of that size can need. Statements that rewrite the file (VACUUM, the
check of its structure, a commit) have no limit: they take as long as the file is large.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from lmk.embed.errors import GalleryDamaged
from lmk.index.catalog.layout import CATALOG
from lmk.index.catalog.migrations import MIGRATIONS
from lmk.index.vectors.files import REBUILD

LONGEST_CELL = 1 << 28  # bytes; what a build writes stays far below
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: LONGEST_CELL,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 64,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 64,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 8,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 64,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
_PRAGMAS = ("trusted_schema = OFF", "cell_size_check = ON")
_STEP = 100_000  # instructions of SQLite's machine between two looks at the limit: some ms
_SOME_STEPS = 30  # that any statement may take
_PER_BYTE = 4  # instructions; a row of 12 instructions has more than a hundred bytes
_SOME_BYTES = 1 << 16
_SOME_ROWS = 16  # in memory before their bytes are counted; each may have LONGEST_CELL
_WITH_BYTES = {str, bytes}
_OBJECTS = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name LIMIT 100"

Objects = tuple[tuple[Any, ...], ...]


def set_limits(connection: sqlite3.Connection) -> None:
    """Sets the limits of a new connection, before its schema is read."""
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    limit_steps(connection, 0)
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def limit_steps(connection: sqlite3.Connection, size: int | None) -> None:
    """Limits the steps of what is executed next; beyond them SQLite says "interrupted".

    Args:
        connection: to the catalog.
        size: of the catalog, in bytes; None for no limit.
    """
    if size is None:
        connection.set_progress_handler(None, 0)
        return
    steps = _SOME_STEPS + _PER_BYTE * size // _STEP
    # No Python function: Ctrl-C would be raised inside it, where sqlite3 drops it.
    connection.set_progress_handler(chain(repeat(0, steps), repeat(1)).__next__, _STEP)


def size_of(connection: sqlite3.Connection) -> int:
    """Returns the bytes of a catalog, as it is inside the transaction of a connection."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return int(pages) * int(connection.execute("PRAGMA page_size").fetchone()[0])


def bounded(cursor: sqlite3.Cursor, connection: sqlite3.Connection, folder: Path) -> list[Any]:
    """Returns all rows of a statement, as long as they have no more bytes than the catalog.

    Raises:
        GalleryDamaged: for more.
    """
    found: list[Any] = []
    size, most = 0, _SOME_BYTES
    while rows := cursor.fetchmany(_SOME_ROWS):
        size += sum(map(_bytes_of, zip(*rows, strict=True)))
        if size > most:
            most = _SOME_BYTES + size_of(connection)
            if size > most:
                what = "a table has more bytes than its file"
                raise GalleryDamaged(what, where=folder / CATALOG, remedy=REBUILD)
        found += rows
    return found


def _bytes_of(column: tuple[Any, ...]) -> int:
    kinds = set(map(type, column))
    if not kinds & _WITH_BYTES:
        return 0
    texts = column if kinds <= _WITH_BYTES else (v for v in column if type(v) in _WITH_BYTES)
    return sum(map(len, texts))


def check_schema(connection: sqlite3.Connection, folder: Path, version: int) -> None:
    """Checks that a catalog has the tables and indexes of its format, and nothing else.

    Args:
        connection: to the catalog; nothing but its header was read.
        folder: the gallery.
        version: the format.

    Raises:
        GalleryDamaged: names the first object that is another, missing or too much.
    """
    found, expected = set(connection.execute(_OBJECTS).fetchall()), set(objects_of(version))
    if found == expected:
        return
    kind, name = min(tuple(map(str, item[:2])) for item in found ^ expected)
    known = any(name == item[1] for item in expected)
    what = "is missing or another" if known else "does not belong in it"
    raise GalleryDamaged(
        f"the tables are others than expected: {kind} {name[:100]} {what}",
        where=folder / CATALOG,
        remedy=REBUILD,
    )


@cache
def objects_of(version: int) -> Objects:
    """Returns (type, name, table, SQL) of all that a catalog of a format holds."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        for step in MIGRATIONS[:version]:
            step(fresh, Path())
        return tuple(fresh.execute(_OBJECTS).fetchall())
