"""The catalog of a gallery: one SQLite file that says what the gallery holds.

Everything else of a gallery is a file that a row here names; what no row names does not exist.
The queries are in this module, the tables and the connections in database.py. The write-ahead log
lets readers keep the state they opened while a writer commits, and neither waits for the other.

SQLite does not notice a changed byte in a text or a number, so rows carry a CRC-32 that is
compared whenever they are read, and the labels, which are read for all pictures at once, a SHA-256
per batch. Texts that are not UTF-8 (names of files) are kept byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.index.database import (
    CATALOG,
    catalog_format,
    check_structure,
    connect_reader,
    connect_writer,
    no_gallery,
    sqlite_errors,
    unfinished,
)
from lmk.index.labels import Membership, join_codes, parse_codes
from lmk.index.segments import REBUILD, FileRecord, runs

Role = Literal["gallery", "distractor"]
ROLES: tuple[Role, ...] = get_args(Role)
BATCH_ROWS = 65_536  # pictures added under one checksum, so that a batch stays small in memory
_COUNTED = ("meta", "label", "root", "file", "skipped")
_TABLES = ("meta", "label", "root", "picture", "batch", "file", "segment", "inline", "skipped")


@dataclass(frozen=True)
class Picture:
    """One picture as the catalog knows it.

    Attributes:
        id: unique in the gallery.
        labels: none, one or several.
        root: absolute folder of its manifest (stored relative to the gallery folder, so that both
            can be moved together).
        path: relative to root.
        sha256: of the file, in hex.
        size: of the file, in bytes.
        mtime_ns: of the file, in nanoseconds since 1970.
    """

    id: str
    labels: tuple[str, ...]
    root: str
    path: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class State:
    """What is true of the gallery as a whole; written anew by every commit.

    Attributes:
        fingerprint: of the embedder that made every vector.
        dim: components of a vector.
        rows: row numbers given so far; rows are 0 to rows - 1.
        generation: counts the changes of the rows; never falls.
        next_file: number of the next file; never used twice, so a name never changes its content.
        created, updated: UTC, ISO 8601.
        entries: how many entries each table has that is not counted by `rows`; SQLite does not
            notice all damage that loses some.
    """

    fingerprint: str
    dim: int
    rows: int
    generation: int
    next_file: int
    created: str
    updated: str
    entries: dict[str, int] = field(default_factory=dict)


class Catalog:
    """One connection to the catalog: a reader's snapshot, or the writer's transaction."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._lock = threading.RLock()  # sqlite3 connections are shared, but not at the same time
        self._entries: dict[str, int] = {}  # a reader knows how many there must be

    @classmethod
    def read(cls, folder: Path) -> Catalog:
        """Opens a snapshot: what is committed now, whatever is committed later.

        Raises:
            NotAGallery: there is no catalog, or nothing was ever committed to it.
            FormatTooNew: a newer lmk wrote it.
            GalleryDamaged: SQLite cannot read it.
        """
        if not (folder / CATALOG).is_file():
            raise no_gallery(folder)
        with sqlite_errors(folder):
            catalog = cls(folder, connect_reader(folder))
        try:
            if catalog_format(catalog._connection, folder) == 0:
                raise unfinished(folder)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @classmethod
    def write(cls, folder: Path) -> Catalog:
        """Opens the catalog for the one writer (who holds the lock), inside a transaction."""
        return cls(folder, connect_writer(folder))

    def close(self) -> None:
        """Ends the snapshot or rolls the transaction back; a second call does nothing."""
        self._connection.close()

    # Reading

    def check_structure(self) -> None:
        """Checks that every table can be read and written, beyond `state` (GalleryDamaged)."""
        with self._lock:
            check_structure(self._connection, self.folder)

    def snapshot_state(self) -> State | None:
        """Returns the state of a reader's snapshot, and holds every table to its counts."""
        state = self.state()
        self._entries = {} if state is None else state.entries
        return state

    def state(self) -> State | None:
        """Returns the state, or None where no gallery was ever committed."""
        value = self.meta("state")
        return None if value is None else State(**value)

    def meta(self, name: str) -> Any:
        """Returns the JSON value kept under `name`, None where there is none."""
        found = self._table("meta", "name")
        for name_, value, crc in found:  # all of them: a changed name would only be missed
            self._compare(crc, name_, value)
        return next((json.loads(value) for name_, value, _ in found if name_ == name), None)

    def files(self) -> list[FileRecord]:
        """Returns every file the catalog names, by path."""
        return [FileRecord(*row) for row in self._table("file", "path")]

    def segments(self) -> list[tuple[int, int, str]]:
        """Returns (first row, rows, file) of each segment, by first row."""
        return self._all("SELECT first_row, rows, file FROM segment ORDER BY first_row")

    def inline(self) -> list[tuple[int, int, bytes]]:
        """Returns (first row, rows, half-precision vectors) of each small add, by first row."""
        parts = []
        query = "SELECT first_row, rows, vectors, sha256 FROM inline ORDER BY first_row"
        for first, rows, vectors, sha256 in self._all(query):
            if not isinstance(vectors, bytes) or hashlib.sha256(vectors).hexdigest() != sha256:
                raise self.damaged(f"the vectors from row {first} on have changed")
            parts.append((first, rows, vectors))
        return parts

    def membership(self, rows: int) -> Membership:
        """Returns role and labels of each of the gallery's `rows` rows (GalleryDamaged)."""
        query = "SELECT first_row, rows, role, sha256 FROM batch ORDER BY first_row"
        batches = self._all(query)
        self.check_tiling([batch[:2] for batch in batches], rows)
        distractor = np.zeros(rows, np.bool_)
        counts = np.empty(rows, np.int64)
        pieces = [np.empty(0, np.int64)]
        for first, size, role, sha256 in batches:
            text, digest = self._batch_labels(first, size, role)
            if digest != sha256 or role not in ROLES:
                raise self.damaged(f"the labels from row {first} on have changed")
            distractor[first : first + size] = role == "distractor"
            counts[first : first + size], codes = parse_codes(text)
            pieces.append(codes)
        names, codes = self.codes("label"), np.concatenate(pieces)
        if codes.size and codes.max() >= len(names):
            raise self.damaged("a label is missing")
        return Membership.of(distractor, counts, codes, names)

    def check_tiling(self, parts: Sequence[tuple[int, int]], rows: int) -> None:
        """Checks that (first row, rows) pairs hold rows 0 to `rows`, each once (GalleryDamaged)."""
        for (first, size), (after, _) in pairwise([(0, 0), *parts, (rows, 0)]):
            if first + size != after:
                raise self.damaged(f"rows {first + size} to {after} are not accounted for")

    def codes(self, table: Literal["label", "root"]) -> list[str]:
        """Returns the texts of a table, by code (GalleryDamaged where one has changed)."""
        texts = []
        for expected, (code, text, crc) in enumerate(self._table(table, "code")):
            self._compare(crc, code, text)
            if code != expected:
                raise self.damaged(f"{table} {expected} is missing")
            texts.append(text)
        return texts

    def rows(self, rows: NDArray[np.int64]) -> list[tuple[str, int, str, str, int, int]]:
        """Returns (id, code of the root, path, sha256, size, mtime_ns) of each row asked for."""
        order = np.argsort(rows, kind="stable")
        wanted = rows[order]
        found: list[tuple[str, int, str, str, int, int]] = [("", 0, "", "", 0, 0)] * len(rows)
        query = (
            "SELECT row, id, root, path, sha256, size, mtime_ns, labels, crc FROM picture"
            " WHERE row BETWEEN ? AND ? ORDER BY row"
        )
        for start, stop in runs(wanted):
            first, last = int(wanted[start]), int(wanted[stop - 1])
            block = self._all(query, (first, last))
            if len(block) != last - first + 1:
                raise self.damaged(f"a picture of rows {first} to {last} is missing")
            for position, row in zip(order[start:stop], wanted[start:stop] - first, strict=True):
                *values, crc = block[row]
                self._compare(crc, *values)
                found[position] = tuple(values[1:7])
        return found

    def skipped(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of every file left out, by path."""
        found = self._table("skipped", "path")
        for path, reason, crc in found:
            self._compare(crc, path, reason)
        return [(path, reason) for path, reason, _ in found]

    def known(self, ids: Iterable[str]) -> dict[str, str]:
        """Returns the SHA-256 of those pictures among `ids` that are in the gallery."""
        query = "SELECT sha256 FROM picture WHERE id = CAST(? AS TEXT)"
        found = ((id_, self._all(query, (_text(id_),))) for id_ in ids)
        return {id_: rows[0][0] for id_, rows in found if rows}

    # Writing

    def begin(self) -> None:
        """Begins the writer's transaction."""
        self._all("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Makes the transaction durable and visible."""
        self._all("COMMIT")

    def clear(self) -> None:
        """Deletes every row of every table."""
        for table in _TABLES:
            self._all(f"DELETE FROM {table}")

    def set_state(self, state: State) -> None:
        """Replaces the state, as the last thing before a commit."""
        self.set_meta("state", None)  # counted with the others
        entries = {t: self._all(f"SELECT count(*) FROM {t}")[0][0] for t in _COUNTED}
        self.set_meta("state", asdict(replace(state, entries=entries)))

    def set_meta(self, name: str, value: Any) -> None:
        """Keeps a JSON value under `name`."""
        text = json.dumps(value)
        crc = _crc(name, text)
        self._all("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, crc))

    def add_files(self, records: Iterable[FileRecord]) -> None:
        """Names files, replacing what was said of the same paths."""
        rows = ((record.path, record.size, record.sha256) for record in records)
        self._many("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", rows)

    def drop_files(self, paths: Iterable[str]) -> None:
        """Names files no longer."""
        self._many("DELETE FROM file WHERE path = ?", ((path,) for path in paths))

    def add_segment(self, first_row: int, rows: int, record: FileRecord) -> None:
        """Names a segment in place of the segments and inline vectors that began at its rows."""
        replaced = "SELECT file FROM segment WHERE first_row >= ?"
        self.drop_files([path for (path,) in self._all(replaced, (first_row,))])
        self._all("DELETE FROM segment WHERE first_row >= ?", (first_row,))
        self._all("DELETE FROM inline WHERE first_row >= ?", (first_row,))
        self.add_files([record])
        self._all("INSERT INTO segment VALUES (?, ?, ?)", (first_row, rows, record.path))

    def add_inline(self, first_row: int, rows: int, vectors: bytes) -> None:
        """Keeps the half-precision vectors of a small add."""
        digest = hashlib.sha256(vectors).hexdigest()
        self._all("INSERT INTO inline VALUES (?, ?, ?, ?)", (first_row, rows, vectors, digest))

    def add_pictures(self, first_row: int, pictures: Sequence[Picture], role: Role) -> None:
        """Gives the pictures, whose ids are new, the row numbers from `first_row` on."""
        base = os.path.realpath(self.folder)
        relative = {root: os.path.relpath(root, base) for root in {p.root for p in pictures}}
        roots = self._new_codes("root", relative.values())
        labels = self._new_codes("label", (name for p in pictures for name in p.labels))

        def values(row: int, p: Picture) -> tuple[Any, ...]:
            codes = join_codes(labels[name] for name in p.labels)
            root = roots[relative[p.root]]
            given = (row, p.id, root, p.path, p.sha256, int(p.size), int(p.mtime_ns), codes)
            id_, path = _text(p.id), _text(p.path)
            return row, id_, root, path, *given[4:], _crc(*given)

        insert = (
            "INSERT INTO picture VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"
        )
        self._many(insert, (values(row, p) for row, p in enumerate(pictures, first_row)))
        for start in range(0, len(pictures), BATCH_ROWS):
            first, size = first_row + start, min(BATCH_ROWS, len(pictures) - start)
            _, digest = self._batch_labels(first, size, role)
            self._all("INSERT INTO batch VALUES (?, ?, ?, ?)", (first, size, role, digest))

    def add_skipped(self, path: str, reason: str) -> None:
        """Records a file left out, in place of what was said of it before."""
        insert = "INSERT OR REPLACE INTO skipped VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?)"
        self._all(insert, (_text(path), _text(reason), _crc(path, reason)))

    # Parts

    def damaged(self, what: str) -> GalleryDamaged:
        """Returns the error that says what of the catalog is damaged."""
        return GalleryDamaged(what, where=self.folder / CATALOG, remedy=REBUILD)

    def _table(self, table: str, key: str) -> list[Any]:
        found = self._all(f"SELECT * FROM {table} ORDER BY {key}")
        if len(found) != self._entries.get(table, len(found)):
            raise self.damaged(f"{len(found)} of {self._entries[table]} entries of {table}")
        return found

    def _compare(self, crc: Any, *values: Any) -> None:
        if crc != _crc(*values):
            raise self.damaged("an entry has changed")

    def _batch_labels(self, first: int, size: int, role: str) -> tuple[str, str]:
        """Returns the labels of a batch as one text, "3,17,||5," and the checksum over it.

        SQLite joins them: a Python object for each of a million rows would take seconds.
        """
        query = (
            "SELECT count(*), group_concat(labels, '|') FROM"
            " (SELECT labels FROM picture WHERE row BETWEEN ? AND ? ORDER BY row)"
        )
        count, text = self._all(query, (first, first + size - 1))[0]
        if count != size or not isinstance(text, str):
            raise self.damaged(f"{count} of {size} pictures from row {first} on")
        return text, hashlib.sha256(_text(f"{first} {size} {role} {text}")).hexdigest()

    def _new_codes(self, table: str, texts: Iterable[str]) -> dict[str, int]:
        """Returns the code of each text, giving the next ones to new texts."""
        codes: dict[str, int] = {}
        free = int(self._all(f"SELECT count(*) FROM {table}")[0][0])
        for text in texts:
            if text in codes:
                continue
            query = f"SELECT code FROM {table} WHERE text = CAST(? AS TEXT)"
            found = self._all(query, (_text(text),))
            codes[text] = found[0][0] if found else free
            if not found:
                insert = f"INSERT INTO {table} VALUES (?, CAST(? AS TEXT), ?)"
                self._all(insert, (free, _text(text), _crc(free, text)))
                free += 1
        return codes

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, sqlite_errors(self.folder):
            return self._connection.execute(sql, values).fetchall()

    def _many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._lock, sqlite_errors(self.folder):
            self._connection.executemany(sql, rows)


def _text(text: str) -> bytes:
    """Returns a text as the bytes to bind under CAST(? AS TEXT): sqlite3 refuses surrogates."""
    if "\0" in text:
        raise ValueError(f"a NUL character in {text!r}")
    return text.encode("utf-8", "surrogateescape")


def _crc(*values: Any) -> int:
    return zlib.crc32(repr(values).encode())
