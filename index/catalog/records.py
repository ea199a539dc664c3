"""Entries of a catalog as values that check themselves.

A catalog may come from somebody else, with checksums that fit. Its values are therefore checked
when they are read: types, ranges, and that paths stay inside the gallery.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np

from lmk.index.catalog.layout import NAMED, stays_inside
from lmk.index.vectors.files import FileRecord

Precision = Literal["f16", "f32"]
DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# Exceptions that the use of a wrong number or name can raise.
CHANGED = (TypeError, ValueError, LookupError, OverflowError, AttributeError)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CODES = re.compile(r"([0-9]{1,10},)*")
_MOST = 1 << 48  # rows, bytes, files
_MOST_COMPONENTS = 1 << 20
_PICTURE_TYPES = (int, str, int, str, str, int, int, str)  # of the fields of PictureRow


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery.

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


class PictureRow(NamedTuple):
    """One row of the table of pictures, without the checksum.

    Attributes:
        row, id, path, sha256, size, mtime_ns: as in Picture.
        root: the code of the root.
        labels: the codes of the labels, in the form of join_codes.
    """

    row: int
    id: str
    root: int
    path: str
    sha256: str
    size: int
    mtime_ns: int
    labels: str


@dataclass(frozen=True)
class State:
    """State of the gallery as a whole; every commit replaces it.

    Attributes:
        fingerprint: fingerprint of the embedder of all vectors.
        dim: number of components of a vector.
        rows: number of row numbers used so far; rows are 0 to rows - 1.
        removed: number of rows that were removed.
        precision: precision of the stored vectors: "f16" changes a cosine by less than 1e-3, "f32"
            does not change it.
        generation: number of changes of the rows; it never decreases.
        next_file: number of the next file. No number is used twice, so a name has one content.
        created, updated: UTC, ISO 8601.
        entries: number of entries of each table that `rows` does not count. SQLite does not notice
            all damage that loses some of them.

    Raises:
        ValueError, TypeError: a value is not one that lmk writes.
    """

    fingerprint: str
    dim: int
    rows: int
    generation: int
    next_file: int
    created: str
    updated: str
    removed: int = 0
    precision: Precision = "f16"
    entries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not SAFE_NAME.fullmatch(self.fingerprint):  # it names a folder
            raise ValueError(f"a fingerprint of {self.fingerprint[:40]!r}")
        _require_count("dim", self.dim, 1, _MOST_COMPONENTS)
        for name in ("rows", "generation", "next_file", "removed"):
            _require_count(name, getattr(self, name))
        if self.precision not in DTYPES or self.removed > self.rows:
            raise ValueError(f"{self.removed} of {self.rows} removed, {self.precision!r}")
        for moment in (self.created, self.updated):
            datetime.fromisoformat(moment)
        for table, count in self.entries.items():
            _require_count(table, count)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored vectors, little-endian."""
        return DTYPES[self.precision]


def _require_count(name: str, value: object, least: int = 0, most: int = _MOST) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} of {str(value)[:40]}")


def checked_file(path: object, size: object, sha256: object) -> FileRecord:
    """Returns the record of a file, which must be a file of lmk below the gallery (ValueError)."""
    if not isinstance(path, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"a file of {str(path)[:80]!r}")
    top, _, rest = path.partition("/")
    if not stays_inside(path) or top not in NAMED or not rest or os.path.normpath(path) != path:
        raise ValueError(f"a file outside the gallery: {path[:80]!r}")
    _require_count("size", size)
    return FileRecord(path, int(str(size)), sha256)


def checked_array(header: Any) -> dict[str, Any]:
    """Returns the header of an array after a check (ValueError, TypeError, LookupError)."""
    path, dtype, shape = header["file"], np.dtype(header["dtype"]), header["shape"]
    for size in (*shape, header["generation"]):
        _require_count("array", size)
    if not isinstance(path, str) or not path.startswith("arrays/") or dtype.kind not in "biufc":
        raise ValueError(f"an array of {dtype} in {str(path)[:80]!r}")
    return dict(header)


def checked_picture(values: list[Any]) -> PictureRow:
    """Returns the entry of a picture, whose path must lie below the folder of its manifest.

    Raises:
        ValueError: a value is not one that lmk writes.
    """
    entry = PictureRow(*values)
    if tuple(map(type, entry)) != _PICTURE_TYPES or entry.root < 0:
        raise ValueError("a picture of other types")
    if not stays_inside(entry.path) or "\0" in entry.id:
        raise ValueError(f"a path outside the folder of the pictures: {entry.path[:80]!r}")
    if not _SHA256.fullmatch(entry.sha256) or not _CODES.fullmatch(entry.labels):
        raise ValueError("a picture without a checksum or with strange labels")
    return entry


def picture_of(entry: PictureRow, labels: tuple[str, ...], root: str) -> Picture:
    """Returns the picture of an entry, with the texts of its codes."""
    size, mtime_ns = entry.size, entry.mtime_ns
    return Picture(entry.id, labels, root, entry.path, entry.sha256, size, mtime_ns)


def batch_digest(first: int, rows: int, data: bytes) -> str:
    """Returns the checksum of a batch, which includes its place."""
    return hashlib.sha256(b"%d %d " % (first, rows) + data).hexdigest()


def text_bytes(text: str) -> bytes:
    """Returns a text as bytes for CAST(? AS TEXT), as sqlite3 refuses surrogates in a text."""
    if "\0" in text:
        raise ValueError(f"a NUL character in {text!r}")
    return text.encode("utf-8", "surrogateescape")


def checksum(*values: Any) -> int:
    """Returns the CRC-32 of the values of an entry."""
    return zlib.crc32(repr(values).encode())
