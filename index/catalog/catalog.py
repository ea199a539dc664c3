"""Catalog: the SQLite file that describes a gallery and names its other files.

A file of a gallery that no row of the catalog names does not belong to the gallery.
This module and pictures.py read the catalog, changes.py changes it, migrations.py defines the
tables, and database.py opens the connections. The write-ahead log lets a reader keep the state that
it opened while a writer commits, and neither waits for the other.

SQLite does not notice a changed byte in a text or a number. Each row therefore has a CRC-32, which
is compared whenever the row is read. The data that are read for all pictures at once (roles,
labels, removed rows) have a SHA-256 per batch. Texts that are not UTF-8 (names of files) are stored
byte by byte.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.embed.plain_files import parse_json
from lmk.embed.process import check_process
from lmk.index.catalog.database import (
    catalog_format,
    check_structure,
    connect_reader,
    connect_writer,
    in_todays_format,
    no_gallery,
    sqlite_errors,
)
from lmk.index.catalog.layout import CATALOG, refuse_links
from lmk.index.catalog.limits import bounded, limit_steps, size_of
from lmk.index.catalog.migrations import FORMAT
from lmk.index.catalog.records import (
    CHANGED,
    State,
    batch_digest,
    checked_array,
    checked_file,
    checksum,
    text_bytes,
)
from lmk.index.vectors.files import REBUILD, FileRecord, closing_on_error
from lmk.index.vectors.labels import ROLES, Membership, Packed, Role

COUNTED = ("meta", "label", "root", "file", "skipped", "removal", "removed", "landmark")
_INHERITED: list[sqlite3.Connection] = []  # connections of the process that this one is a fork of
Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def entry_errors(damaged: Callable[[str], GalleryDamaged]) -> Iterator[None]:
    """Turns the errors that a changed number or name in the catalog causes into GalleryDamaged."""
    try:
        yield
    except CHANGED as error:
        raise damaged(f"an entry has changed: {error}") from error


def reads(method: Method) -> Method:
    """Applies `entry_errors` to a method of an object that has a method `damaged`."""

    @wraps(method)
    def reading(self: Any, *args: Any, **options: Any) -> Any:
        with entry_errors(self.damaged):
            return method(self, *args, **options)

    return cast(Method, reading)


class Catalog:
    """One connection to the catalog: a reader's snapshot, or the writer's transaction."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = threading.RLock()  # threads take turns on the connection
        self._process = os.getpid()
        self._entries: dict[str, int] = {}  # required number of rows of a table, for a reader
        self._size: int | None = None  # in bytes; None if unknown
        self.format = FORMAT  # on disk

    @classmethod
    def read(cls, folder: Path) -> Catalog:
        """Opens a snapshot of the committed state; later commits do not change it.

        Raises:
            NotAGallery: there is no catalog, or nothing was ever committed to it.
            FormatTooNew: a newer lmk wrote it.
            GalleryDamaged: SQLite cannot read it.
            UnsafeIndex: there is a link or a special file in the gallery.
        """
        refuse_links(folder)
        if not (folder / CATALOG).is_file():
            raise no_gallery(folder)
        with sqlite_errors(folder):
            catalog = cls(folder, connect_reader(folder))
        with closing_on_error([catalog]):
            catalog.format = catalog_format(catalog._connection, folder)
            catalog._connection = in_todays_format(catalog._connection, folder)
        return catalog

    @classmethod
    def write(cls, folder: Path) -> Catalog:
        """Opens the catalog for the one writer, which holds the lock, inside a transaction."""
        return cls(folder, connect_writer(folder))

    def close(self) -> None:
        """Ends the snapshot or rolls the transaction back; a second call does nothing.

        A fork leaves the connection to its parent: closing it would end the parent's log.
        """
        if self.inherited:
            _INHERITED.append(self._connection)  # else the garbage collector would close it
        else:
            self._connection.close()

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one that opened the catalog."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Checks that this process is the one that opened the catalog (ForkedProcess)."""
        check_process(self._process, self.folder)

    # Reading

    def check_structure(self, *, whole: bool = False) -> None:
        """Checks that every table can be read and written (GalleryDamaged).

        Args:
            whole: also check that the indexes agree with the tables.
        """
        with self._lock:
            check_structure(self._connection, self.folder, whole=whole)

    def snapshot_state(self) -> State | None:
        """Returns the state of a snapshot; later reads compare the tables with its counts."""
        state = self.state()
        self._entries = {} if state is None else state.entries
        return state

    @reads
    def state(self) -> State | None:
        """Returns the state, or None where no gallery was ever committed."""
        value = self.meta("state")
        return None if value is None else State(**value)

    @reads
    def meta(self, name: str) -> Any:
        """Returns the JSON value saved under `name`, or None."""
        value = self._meta().get(name)
        return None if value is None else parse_json(value)

    @reads
    def metas(self, prefix: str) -> dict[str, Any]:
        """Returns the JSON values saved under names with a prefix, by the rest of the name."""
        values = self._meta().items()
        return {n.removeprefix(prefix): parse_json(v) for n, v in values if n.startswith(prefix)}

    @reads
    def array(self, name: str) -> dict[str, Any] | None:
        """Returns the header of an array (file, dtype, shape, ...), or None."""
        header = self.meta(f"array:{name}")
        return None if header is None else checked_array(header)

    @reads
    def arrays(self) -> dict[str, dict[str, Any]]:
        """Returns the header of each array, by name."""
        return {name: checked_array(header) for name, header in self.metas("array:").items()}

    def _meta(self) -> dict[str, str]:
        rows = self.table("meta", "name")
        for name, value, crc in rows:  # all rows, as a changed name looks like a missing one
            self.compare(crc, name, value)
        return {name: value for name, value, _ in rows}

    @reads
    def files(self) -> list[FileRecord]:
        """Returns the records of all files that the catalog names, sorted by path."""
        return [checked_file(*row) for row in self.table("file", "path")]

    @reads
    def segments(self) -> list[tuple[int, int, str]]:
        """Returns (first row, rows, file) of each segment, by first row."""
        segments = self.all("SELECT first_row, rows, file FROM segment ORDER BY first_row")
        return [(index(first), index(rows), str(path)) for first, rows, path in segments]

    def inline(self) -> list[tuple[int, int, bytes]]:
        """Returns (first row, rows, vectors as stored) of each small addition, by first row."""
        parts = []
        for first, rows, vectors in self.inline_entries():
            if vectors is None:
                raise self.damaged(f"the vectors from row {first} on have changed")
            parts.append((first, rows, vectors))
        return parts

    @reads
    def inline_entries(self) -> list[tuple[int, int, bytes | None]]:
        """Returns the entries of `inline`, with None for vectors that have changed."""
        query = "SELECT first_row, rows, vectors, sha256 FROM inline ORDER BY first_row"
        return [
            (first, rows, data if hashlib.sha256(data).hexdigest() == sha256 else None)
            for first, rows, data, sha256 in self.all(query)
        ]

    @reads
    def inline_rows(self) -> int:
        """Returns the number of rows whose vectors are in the catalog."""
        return int(self.all("SELECT coalesce(sum(rows), 0) FROM inline")[0][0])

    @reads
    def membership(self, state: State) -> Membership:
        """Returns role and labels of each of the gallery's rows (GalleryDamaged)."""
        packed, names = self.packed(state.rows), self.codes("label")
        if packed.codes.size and packed.codes.max() >= len(names):
            raise self.damaged("a label is missing")
        return Membership.of(packed, self.alive(state), names)

    @reads
    def packed(self, rows: int) -> Packed:
        """Returns role and label codes of each of the gallery's `rows` rows (GalleryDamaged)."""
        batches = self.batches(0)
        self.check_tiling([batch[:2] for batch in batches], rows)
        return Packed.joined([packed for _, _, packed in batches])

    @reads
    def batches(self, first_row: int) -> list[tuple[int, int, Packed]]:
        """Returns (first row, rows, their roles and labels) of the batches from a row on."""
        query = (
            "SELECT first_row, rows, data, sha256 FROM batch WHERE first_row >= ?"
            " ORDER BY first_row"
        )
        batches = []
        for first, rows, data, sha256 in self.all(query, (first_row,)):
            if batch_digest(first, rows, data) != sha256:
                raise self.damaged(f"the labels from row {first} on have changed")
            batches.append((first, rows, Packed.from_bytes(data, rows)))
        return batches

    @reads
    def alive(self, state: State) -> NDArray[np.bool_]:
        """Returns a mask of the rows that were not removed, bool [rows] (GalleryDamaged)."""
        alive = np.ones(state.rows, np.bool_)
        for rows in self.removals():
            alive[rows] = False
        if state.removed != state.rows - np.count_nonzero(alive):
            raise self.damaged("not as many rows are removed as were")
        return alive

    @reads
    def removals(self) -> list[NDArray[np.int64]]:
        """Returns the rows of each removal, ascending (GalleryDamaged)."""
        removals = []
        for number, data, sha256 in self.table("removal", "number"):
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self.damaged(f"the rows of removal {number} have changed")
            rows = np.frombuffer(data, "<i8")
            if (np.diff(rows, prepend=-1) <= 0).any():
                raise ValueError(f"the rows of removal {number} are not in ascending order")
            removals.append(rows)
        return removals

    @reads
    def removed_ids(self, ids: Iterable[str]) -> set[str]:
        """Returns those of `ids` whose picture was removed since the last `compact`.

        The catalog must have format 3, as that of a writer has.
        """
        query = "SELECT id, crc FROM removed WHERE id = CAST(? AS TEXT)"
        removed = [row for id_ in ids for row in self.all(query, (text_bytes(id_),))]
        for id_, crc in removed:
            self.compare(crc, id_)
        return {id_ for id_, _ in removed}

    @reads
    def check_removed_ids(self) -> None:
        """Compares the ids of removed pictures with their checksums (GalleryDamaged)."""
        if self.format >= 3:
            for id_, crc in self.table("removed", "id"):
                self.compare(crc, id_)

    def check_tiling(self, parts: Sequence[tuple[int, int]], rows: int) -> None:
        """Checks that (first row, rows) pairs cover each of `rows` rows once (GalleryDamaged)."""
        for (first, size), (after, _) in pairwise([(0, 0), *parts, (rows, 0)]):
            if first + size != after:
                raise self.damaged(f"rows {first + size} to {after} are not accounted for")

    @reads
    def codes(self, table: Literal["label", "root"]) -> list[str]:
        """Returns the texts of a table, by code (GalleryDamaged where one has changed)."""
        texts = []
        for expected, (code, text, crc) in enumerate(self.table(table, "code")):
            if crc != checksum(code, text):
                raise self.damaged(f"{table} {code} has changed")
            if code != expected:
                raise self.damaged(f"{table} {expected} is missing")
            if not isinstance(text, str):
                raise TypeError(f"{table} {code} is no text")
            texts.append(text)
        return texts

    @reads
    def roots(self) -> list[str]:
        """Returns the folders of the manifests, absolute, by code."""
        base = os.path.realpath(self.folder)
        roots = self.codes("root")
        if any(os.path.isabs(root) or "\0" in root for root in roots):  # noqa: PTH117
            raise ValueError("a folder of pictures is not relative to the gallery")
        return [os.path.normpath(os.path.join(base, root)) for root in roots]  # noqa: PTH118

    @reads
    def skipped(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of every skipped file, sorted by path."""
        rows = self.table("skipped", "path")
        for path, reason, crc in rows:
            self.compare(crc, path, reason)
            if not isinstance(path, str) or not isinstance(reason, str):
                raise TypeError("a skipped file is no text")
        return [(path, reason) for path, reason, _ in rows]

    @reads
    def role(self, row: int) -> Role:
        """Returns the role of a row."""
        query = (
            "SELECT substr(data, 1 + ?1 - first_row, 1) FROM batch WHERE first_row <= ?1"
            " ORDER BY first_row DESC LIMIT 1"
        )
        codes = self.all(query, (row,))
        if not codes or len(codes[0][0]) != 1:
            raise self.damaged(f"row {row} has no role")
        role: Role = ROLES[codes[0][0][0]]
        return role

    def counts(self) -> dict[str, int]:
        """Returns the number of rows of each table that State.entries counts."""
        return {table: self.all(f"SELECT count(1) FROM {table}")[0][0] for table in COUNTED}

    def damaged(self, what: str) -> GalleryDamaged:
        """Returns the error for a damaged catalog."""
        return GalleryDamaged(what, where=self.folder / CATALOG, remedy=REBUILD)

    def table(self, table: str, key: str) -> list[Any]:
        """Returns all entries of a table, ordered by a column (GalleryDamaged if some are lost)."""
        rows = self.all(f"SELECT * FROM {table} ORDER BY {key}")
        if len(rows) != self._entries.get(table, len(rows)):
            raise self.damaged(f"{len(rows)} of {self._entries[table]} entries of {table}")
        return rows

    def compare(self, crc: Any, *values: Any) -> None:
        """Compares the values of an entry with its checksum (GalleryDamaged)."""
        if crc != checksum(*values):
            raise self.damaged("an entry has changed")

    def all(self, sql: str, values: Sequence[Any] = (), *, limited: bool = True) -> list[Any]:
        """Returns the rows of a statement; see limits.py.

        Args:
            sql, values: the statement.
            limited: limit the steps to those that a catalog of this size can need.
        """
        self.check_process()
        with self._lock, sqlite_errors(self.folder):
            if self._size is None:
                self._size = size_of(self._connection)
            limit_steps(self._connection, self._size if limited else None)
            rows = bounded(self._connection.execute(sql, values), self._connection, self.folder)
            if not sql.startswith("SELECT"):
                self._size = None
            return rows

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each of `rows`."""
        self.check_process()
        with self._lock, sqlite_errors(self.folder):
            limit_steps(self._connection, None)  # each statement changes one row
            self._connection.executemany(sql, rows)
            self._size = None
