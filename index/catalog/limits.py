"""Limits on SQLite for a catalog, which may come from somebody else.

A catalog of another person can hold views that never end, triggers that delete, cells of a
gigabyte, or pages that many others point to, so that a small file seems to have endless rows. Only
the exact tables of a known format are read. No statement may return more bytes than the file has,
or take more steps than a file of that size can need. Statements that rewrite the file (VACUUM, the
check of its structure, a commit) have no limit, as their time depends on the size of the file.
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

LONGEST_CELL = 1 << 28  # bytes; the cells of a build are far smaller
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
_STEP = 100_000  # instructions of SQLite's machine between two checks of the limit: some ms
_SOME_STEPS = 30  # allowed for any statement
_PER_BYTE = 4  # instructions; a row of 12 instructions has more than a hundred bytes
_SOME_BYTES = 1 << 16
_SOME_ROWS = 16  # rows in memory before their bytes are counted; each may have LONGEST_CELL
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
    """Limits the steps of the next statement; SQLite interrupts a statement that needs more.

    Args:
        connection: a connection to the catalog.
        size: size of the catalog in bytes; None for no limit.
    """
    if size is None:
        connection.set_progress_handler(None, 0)
        return
    steps = _SOME_STEPS + _PER_BYTE * size // _STEP
    # Not a Python function, inside which sqlite3 would drop the exception of Ctrl-C.
    connection.set_progress_handler(chain(repeat(0, steps), repeat(1)).__next__, _STEP)


def size_of(connection: sqlite3.Connection) -> int:
    """Returns the size of a catalog in bytes, inside the transaction of a connection."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return int(pages) * int(connection.execute("PRAGMA page_size").fetchone()[0])


def bounded(cursor: sqlite3.Cursor, connection: sqlite3.Connection, folder: Path) -> list[Any]:
    """Returns all rows of a statement.

    Raises:
        GalleryDamaged: the rows have more bytes than the catalog.
    """
    rows: list[Any] = []
    size, most = 0, _SOME_BYTES
    while block := cursor.fetchmany(_SOME_ROWS):
        size += sum(map(_bytes_of, zip(*block, strict=True)))
        if size > most:
            most = _SOME_BYTES + size_of(connection)
            if size > most:
                what = "a table has more bytes than its file"
                raise GalleryDamaged(what, where=folder / CATALOG, remedy=REBUILD)
        rows += block
    return rows


def _bytes_of(column: tuple[Any, ...]) -> int:
    kinds = set(map(type, column))
    if not kinds & _WITH_BYTES:
        return 0
    texts = column if kinds <= _WITH_BYTES else (v for v in column if type(v) in _WITH_BYTES)
    return sum(map(len, texts))


def check_schema(connection: sqlite3.Connection, folder: Path, version: int) -> None:
    """Checks that a catalog has the tables and indexes of its format, and nothing else.

    Args:
        connection: a connection to the catalog, of which only the header was read.
        folder: the gallery.
        version: the format.

    Raises:
        GalleryDamaged: an object differs, is missing or superfluous; the error names it.
    """
    objects, expected = set(connection.execute(_OBJECTS).fetchall()), set(objects_of(version))
    if objects == expected:
        return
    kind, name = min(tuple(map(str, item[:2])) for item in objects ^ expected)
    known = any(name == item[1] for item in expected)
    what = "is missing or another" if known else "does not belong in it"
    raise GalleryDamaged(
        f"the tables are others than expected: {kind} {name[:100]} {what}",
        where=folder / CATALOG,
        remedy=REBUILD,
    )


@cache
def objects_of(version: int) -> Objects:
    """Returns (type, name, table, SQL) of all objects in a catalog of a format."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        for step in MIGRATIONS[:version]:
            step(fresh, Path())
        return tuple(fresh.execute(_OBJECTS).fetchall())
