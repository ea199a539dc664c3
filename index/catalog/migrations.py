"""Formats of the catalog: step n migrates a catalog of format n to format n + 1.

A released step is never changed. A sample of each released format is in tests/golden.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.index.vectors.files import REBUILD

_FORMAT_1 = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE label (code INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE,"
    " crc INTEGER NOT NULL)",
    "CREATE TABLE root (code INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, crc INTEGER NOT NULL)",
    # labels: the codes, each with a comma behind it: "3,17,"
    "CREATE TABLE picture (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
    " root INTEGER NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,"
    " mtime_ns INTEGER NOT NULL, labels TEXT NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE batch (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,"
    " role TEXT NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE TABLE file (path TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT NOT NULL)"
    " WITHOUT ROWID",
    # Segments hold rows 0 to m, inline vectors (small adds) the rows after them.
    "CREATE TABLE segment (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,"
    " file TEXT NOT NULL REFERENCES file)",
    "CREATE TABLE inline (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,"
    " vectors BLOB NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE TABLE skipped (path TEXT PRIMARY KEY, reason TEXT NOT NULL, crc INTEGER NOT NULL)"
    " WITHOUT ROWID",
)
# Format 2: rows can be removed, contents are looked up by their checksum, and roles and labels,
# which opening reads for all rows, are packed (labels.Packed) instead of joined from the pictures.
_FORMAT_2 = (
    "DROP TABLE batch",
    "CREATE TABLE batch (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,"
    " data BLOB NOT NULL, sha256 TEXT NOT NULL)",
    # rows: int64, ascending
    "CREATE TABLE removal (number INTEGER PRIMARY KEY, rows BLOB NOT NULL, sha256 TEXT NOT NULL)",
    "CREATE INDEX picture_content ON picture (substr(sha256, 1, 16))",
)
# Format 3: the records of files name the folder of the embedder (embedder/FINGERPRINT or
# embedder/FINGERPRINT-NUMBER), and the ids of removed pictures are stored until `compact`.
_FORMAT_3 = ("CREATE TABLE removed (id TEXT PRIMARY KEY, crc INTEGER NOT NULL) WITHOUT ROWID",)

# Format 4: details of landmarks, as JSON (landmarks.py); `id` is the text of a label.
_FORMAT_4 = (
    "CREATE TABLE landmark (id TEXT PRIMARY KEY, details TEXT NOT NULL, crc INTEGER NOT NULL)"
    " WITHOUT ROWID",
)


def _to_format_1(connection: sqlite3.Connection, folder: Path) -> None:
    for statement in _FORMAT_1:
        connection.execute(statement)


def _to_format_2(connection: sqlite3.Connection, folder: Path) -> None:
    batches = list(connection.execute("SELECT first_row, rows, role, sha256 FROM batch"))
    packed = [_packed_of_format_1(connection, folder, *batch) for batch in batches]
    for statement in _FORMAT_2:
        connection.execute(statement)
    for (first, rows, _, _), data in zip(batches, packed, strict=True):
        digest = hashlib.sha256(b"%d %d " % (first, rows) + data).hexdigest()
        values = (first, rows, data, digest)
        connection.execute("INSERT INTO batch VALUES (?, ?, ?, ?)", values)


def _packed_of_format_1(
    connection: sqlite3.Connection, folder: Path, first: int, rows: int, role: str, sha256: str
) -> bytes:
    """Returns role and labels of a batch, packed, after a comparison with the batch's checksum."""
    query = (
        "SELECT count(*), group_concat(labels, '|') FROM"
        " (SELECT labels FROM picture WHERE row BETWEEN ? AND ? ORDER BY row)"
    )
    count, text = connection.execute(query, (first, first + rows - 1)).fetchone()
    summed = f"{first} {rows} {role} {text}".encode("utf-8", "surrogateescape")
    if count != rows or hashlib.sha256(summed).hexdigest() != sha256:
        raise GalleryDamaged(
            f"the labels from row {first} on have changed", where=folder, remedy=REBUILD
        )
    counts, codes = _parse_codes(text)
    roles = np.full(rows, role == "distractor", np.uint8)
    return roles.tobytes() + counts.astype("<u4").tobytes() + codes.astype("<u4").tobytes()


def _parse_codes(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns counts and codes of labels joined by "|": 2, 0, 1 and 3, 17, 5 for "3,17,||5,"."""
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.flatnonzero(np.append(data, ord("|")) == ord("|"))
    so_far = np.concatenate([[0], np.cumsum(data == ord(","))])[ends]
    return np.diff(so_far, prepend=0), np.fromstring(text.replace("|", ""), np.int64, sep=",")


def _to_format_3(connection: sqlite3.Connection, folder: Path) -> None:
    for statement in _FORMAT_3:
        connection.execute(statement)


def _to_format_4(connection: sqlite3.Connection, folder: Path) -> None:
    for statement in _FORMAT_4:
        connection.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection, Path], None], ...] = (
    _to_format_1,
    _to_format_2,
    _to_format_3,
    _to_format_4,
)
FORMAT = len(MIGRATIONS)
OLDEST_READ = 2  # readers use the tables of this format and of later ones without a migration
