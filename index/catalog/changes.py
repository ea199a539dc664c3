"""Changes: the statements by which a writer changes the catalog."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.landmarks import packed_details
from lmk.index.catalog.pictures import PictureTable
from lmk.index.catalog.records import Picture, PictureRow, State, batch_digest, checksum, text_bytes
from lmk.index.vectors.files import FileRecord
from lmk.index.vectors.labels import Packed, Role, join_codes
from lmk.index.vectors.vectors import row_blocks

BATCH_ROWS = 65_536  # pictures under one checksum, so that a batch stays small in memory
SMALL_BATCHES = 256  # from this number on, smaller batches at the end are joined
_BLOCK_ROWS = 8192
_REMOVAL_ROWS = 1 << 22  # in one entry: 32 MiB, far below limits.LONGEST_CELL
_TABLES = (
    "meta", "label", "root", "picture", "batch", "file", "segment", "inline", "skipped", "removal",
    "removed", "landmark",
)  # fmt: skip
_INSERT_PICTURE = (
    "INSERT INTO picture VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"
)


class Changes:
    """Changes a catalog that was opened with Catalog.write."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._all, self._many = catalog.all, catalog.many

    def begin(self) -> None:
        """Begins the writer's transaction."""
        self._all("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Makes the transaction durable and visible."""
        self._all("COMMIT")

    def vacuum(self) -> None:
        """Frees the space of deleted entries, between two transactions."""
        self._all("VACUUM", limited=False)

    def clear(self) -> None:
        """Deletes every row of every table."""
        for table in _TABLES:
            self._all(f"DELETE FROM {table}")

    def set_state(self, state: State) -> None:
        """Replaces the state, as the last change before a commit."""
        self.set_meta("state", None)  # so that the counts include it
        self.set_meta("state", asdict(replace(state, entries=self._catalog.counts())))

    def set_meta(self, name: str, value: Any) -> None:
        """Saves a JSON value under `name`."""
        text = json.dumps(value)
        crc = checksum(name, text)
        self._all("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, crc))

    def drop_meta(self, name: str) -> None:
        """Deletes the value saved under `name`."""
        self._all("DELETE FROM meta WHERE name = ?", (name,))

    def add_files(self, records: Iterable[FileRecord]) -> None:
        """Records files, in place of earlier records of the same paths."""
        rows = ((record.path, record.size, record.sha256) for record in records)
        self._many("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", rows)

    def drop_files(self, paths: Iterable[str]) -> None:
        """Deletes the records of files."""
        self._many("DELETE FROM file WHERE path = ?", ((path,) for path in paths))

    def add_skipped(self, path: str, reason: str) -> None:
        """Records a skipped file, in place of an earlier record of the same path."""
        insert = "INSERT OR REPLACE INTO skipped VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?)"
        self._all(insert, (text_bytes(path), text_bytes(reason), _checksum(path, reason)))

    def drop_skipped(self, path: str) -> None:
        """Deletes the record of a skipped file."""
        self._all("DELETE FROM skipped WHERE path = CAST(? AS TEXT)", (text_bytes(path),))

    def set_landmarks(self, details: Iterable[LandmarkDetails]) -> None:
        """Saves details of landmarks, in place of all that there were."""
        self._all("DELETE FROM landmark")
        rows = ((d.landmark_id, packed_details(d)) for d in details)
        insert = "INSERT OR REPLACE INTO landmark VALUES (CAST(? AS TEXT), ?, ?)"
        self._many(insert, ((text_bytes(id_), text, _checksum(id_, text)) for id_, text in rows))

    def add_segment(self, first_row: int, rows: int, record: FileRecord) -> None:
        """Adds a segment in place of the segments and inline vectors from its first row on."""
        self.drop_vectors(first_row)
        self.add_files([record])
        self._all("INSERT INTO segment VALUES (?, ?, ?)", (first_row, rows, record.path))

    def drop_vectors(self, first_row: int) -> None:
        """Deletes the entries of the segments and inline vectors from a row on."""
        query = "SELECT file FROM segment WHERE first_row >= ?"
        self.drop_files([path for (path,) in self._all(query, (first_row,))])
        self._all("DELETE FROM segment WHERE first_row >= ?", (first_row,))
        self._all("DELETE FROM inline WHERE first_row >= ?", (first_row,))

    def set_segments(self, segments: Iterable[tuple[int, FileRecord]]) -> None:
        """Replaces all vectors by segments, given as (rows, file)."""
        self.drop_vectors(0)
        first = 0
        for rows, record in segments:
            self.add_segment(first, rows, record)
            first += rows

    def replace_segment(self, old: str, record: FileRecord) -> None:
        """Replaces the file of a segment."""
        self.add_files([record])
        self._all("UPDATE segment SET file = ? WHERE file = ?", (record.path, old))
        self.drop_files([old])

    def add_inline(self, first_row: int, rows: int, vectors: bytes) -> None:
        """Saves the vectors of a small addition, in place of earlier ones of the same rows."""
        digest = hashlib.sha256(vectors).hexdigest()
        values = (first_row, rows, vectors, digest)
        self._all("INSERT OR REPLACE INTO inline VALUES (?, ?, ?, ?)", values)

    def add_pictures(self, first_row: int, pictures: Sequence[Picture], role: Role) -> None:
        """Adds pictures with new ids; their row numbers start at `first_row`."""
        base = os.path.realpath(self._catalog.folder)
        relative = {root: os.path.relpath(root, base) for root in {p.root for p in pictures}}
        roots = self._new_codes("root", relative.values())
        labels = self._new_codes("label", (name for p in pictures for name in p.labels))
        codes = [[labels[name] for name in p.labels] for p in pictures]
        if self._all("SELECT 1 FROM removed LIMIT 1"):
            delete = "DELETE FROM removed WHERE id = CAST(? AS TEXT)"
            self._many(delete, ((text_bytes(p.id),) for p in pictures))
        self._insert(
            PictureRow(
                *(row, p.id, roots[relative[p.root]], p.path, p.sha256),
                *(int(p.size), int(p.mtime_ns), join_codes(own)),
            )
            for row, (p, own) in enumerate(zip(pictures, codes, strict=True), first_row)
        )
        self._add_batches(first_row, Packed.of(role, codes))

    def remove_pictures(self, pictures: Mapping[str, int]) -> None:
        """Deletes the entries of pictures; their row numbers are not used again.

        Args:
            pictures: the row of each id, which is not removed yet; several ids may have one row.
        """
        rows = np.unique(np.array(list(pictures.values()), np.int64))
        self._many("DELETE FROM picture WHERE row = ?", ((row,) for row in rows.tolist()))
        insert = "INSERT OR REPLACE INTO removed VALUES (CAST(? AS TEXT), ?)"
        self._many(insert, ((text_bytes(id_), _checksum(id_)) for id_ in pictures))
        older = self._catalog.removals()
        if len(older) >= SMALL_BATCHES:
            self._all("DELETE FROM removal")
            rows = np.sort(np.concatenate([*older, rows]))
        number = self._all("SELECT coalesce(max(number), 0) + 1 FROM removal")[0][0]
        for start in range(0, len(rows), _REMOVAL_ROWS):
            data = rows[start : start + _REMOVAL_ROWS].astype("<i8").tobytes()
            values = (number, data, hashlib.sha256(data).hexdigest())
            self._all("INSERT INTO removal VALUES (?, ?, ?)", values)
            number += 1

    def renumber(self, alive: NDArray[np.bool_]) -> None:
        """Numbers the rows of a mask bool [rows] from 0 on, in their order."""
        packed = self._catalog.packed(len(alive)).keep(alive)
        self._all("DELETE FROM batch")
        self._add_batches(0, packed)
        self._all("DELETE FROM removal")
        self._all("DELETE FROM removed")
        old = np.flatnonzero(alive)
        moved = np.flatnonzero(old != np.arange(len(old)))  # the first rows may keep their numbers
        for new in row_blocks(moved, _BLOCK_ROWS):
            entries = PictureTable(self._catalog).rows(old[new])
            bounds = (int(old[new[0]]), int(old[new[-1]]))
            self._all("DELETE FROM picture WHERE row BETWEEN ? AND ?", bounds)
            numbered = zip(new.tolist(), entries, strict=True)
            self._insert(entry._replace(row=row) for row, entry in numbered)

    def _insert(self, entries: Iterable[PictureRow]) -> None:
        def values() -> Iterator[tuple[Any, ...]]:
            for entry in entries:
                id_, path = text_bytes(entry.id), text_bytes(entry.path)
                yield (*entry._replace(id=id_, path=path), _checksum(*entry))  # type: ignore[arg-type]

        self._many(_INSERT_PICTURE, values())

    def _add_batches(self, first_row: int, packed: Packed) -> None:
        first, small = self._small_batches()
        if len(small) >= SMALL_BATCHES:
            self._all("DELETE FROM batch WHERE first_row >= ?", (first,))
            packed = Packed.joined([*small, packed])
            first_row = first
        for piece in packed.pieces(BATCH_ROWS):
            rows, data = len(piece.roles), piece.to_bytes()
            if not rows:
                continue
            values = (first_row, rows, data, batch_digest(first_row, rows, data))
            self._all("INSERT INTO batch VALUES (?, ?, ?, ?)", values)
            first_row += rows

    def _small_batches(self) -> tuple[int, list[Packed]]:
        """Returns the first row of the small batches at the end, and these batches if many."""
        query = "SELECT coalesce(max(first_row + rows), 0) FROM batch WHERE rows >= ?"
        first = self._all(query, (BATCH_ROWS,))[0][0]
        count = self._all("SELECT count(1) FROM batch WHERE first_row >= ?", (first,))[0][0]
        if count < SMALL_BATCHES:
            return first, []
        return first, [packed for _, _, packed in self._catalog.batches(first)]

    def _new_codes(self, table: Literal["label", "root"], texts: Iterable[str]) -> dict[str, int]:
        """Returns the code of each text; new texts get the next codes."""
        codes: dict[str, int] = {}
        free = int(self._all(f"SELECT coalesce(max(code) + 1, 0) FROM {table}")[0][0])
        for text in texts:
            if text in codes:
                continue
            query = f"SELECT code FROM {table} WHERE text = CAST(? AS TEXT)"
            rows = self._all(query, (text_bytes(text),))
            codes[text] = rows[0][0] if rows else free
            if not rows:
                insert = f"INSERT INTO {table} VALUES (?, CAST(? AS TEXT), ?)"
                self._all(insert, (free, text_bytes(text), _checksum(free, text)))
                free += 1
        return codes


def _checksum(*values: Any) -> int:
    """Returns the checksum of values as they are read back; numpy's str has a repr of its own."""
    return checksum(*(str(value) if isinstance(value, str) else value for value in values))
