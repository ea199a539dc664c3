"""Transaction: the uncommitted changes of a writer and their files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged
from lmk.embed.files import stamp
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.changes import Changes
from lmk.index.catalog.records import DTYPES, SAFE_NAME, Precision, State
from lmk.index.gallery.folder import SetAside, next_number
from lmk.index.gallery.parts import vector_parts
from lmk.index.vectors.files import FileRecord, StoredFile, write_file
from lmk.index.vectors.vectors import VectorPart, Vectors

INLINE_ROWS = 1024  # fewer rows than this are stored in the catalog, without a file
SMALL_SEGMENT_ROWS = 65_536
SMALL_SEGMENTS = 64  # from this number on, small segments at the end are joined
_BLOCK_ROWS = 8192


class Transaction:
    """State of one writer between two commits.

    Attributes:
        folder: the gallery.
        catalog, changes: the catalog and its changes.
        committed: the files that the last commit names.
        written: paths written since the last commit; they are removed if the transaction fails.
        records: written files that the catalog will name, each with its stamp.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalog = Catalog.write(folder)
        self.changes = Changes(self.catalog)
        self.committed: list[FileRecord] = []
        self.written: list[Path] = []
        self.records: list[tuple[FileRecord, str]] = []
        self._state: State | None = None
        self._pending: list[NDArray[Any]] = []  # vectors of the last rows, which are not stored yet

    def start(self) -> None:
        """Reads the committed state."""
        self._state = self.catalog.state()
        self.committed = self.catalog.files()
        self._pending, self.written, self.records = [], [], []

    @property
    def state(self) -> State:
        """The state that the next commit will write."""
        if self._state is None:
            raise ValueError("a new gallery: call reset first")
        return self._state

    def change_state(self, **values: Any) -> None:
        """Replaces fields of the state."""
        self._state = replace(self.state, **values)

    def new_state(self, fingerprint: str, dim: int, precision: Precision) -> State:
        """Returns the state of an emptied gallery (ValueError, see GalleryWriter.reset)."""
        if not SAFE_NAME.fullmatch(fingerprint) or dim < 1 or precision not in DTYPES:
            raise ValueError(f"a gallery of fingerprint {fingerprint!r} and dim {dim}, {precision}")
        old, now = self._state, _now()
        return State(
            fingerprint=fingerprint,
            dim=dim,
            rows=0,
            generation=old.generation + 1 if old else 0,
            next_file=old.next_file if old else next_number(self.folder),
            created=old.created if old else now,
            updated=now,
            precision=precision,
        )

    def reset(self, state: State) -> None:
        """Empties the gallery."""
        self.changes.clear()
        self._pending, self._state = [], state

    def finish(self) -> list[tuple[FileRecord, str]]:
        """Writes all changes into the catalog, as the last step before a commit.

        Returns:
            The new files, each with its stamp. The commit may or may not reach the disk, so `undo`
            leaves them to the next writer, which reads in the catalog whether they are used.
        """
        self.store_pending()
        self.change_state(updated=_now())
        self.changes.set_state(self.state)
        self.written = []
        return self.records

    @property
    def old_state(self) -> State | None:
        """The state, or None in a new gallery."""
        return self._state

    def undo(self) -> None:
        """Rolls back and removes the written files; does nothing in a fork of the process."""
        self.catalog.close()
        if self.catalog.inherited:
            return
        for path in self.written:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, folder: str, suffix: str, chunks: Iterable[bytes | memoryview]) -> FileRecord:
        """Writes a file under the next number; the caller adds its record to the catalog."""
        path = f"{folder}/{self.state.next_file:06d}.{suffix}"
        self.change_state(next_file=self.state.next_file + 1)
        self.written.append(self.folder / path)
        record = write_file(self.folder, path, chunks)
        self.records.append((record, stamp(self.folder / path)))
        return record

    def add_vectors(self, vectors: NDArray[Any]) -> None:
        """Adds the vectors of the next rows, [n, dim], in the dtype of the gallery."""
        self._pending.append(vectors)
        self.change_state(rows=self.state.rows + len(vectors), generation=self.state.generation + 1)
        if self._pending_rows() >= SMALL_SEGMENT_ROWS:
            self.store_pending()

    def store_pending(self) -> None:
        """Writes the pending vectors into the catalog, or into a segment if they are many."""
        if not self._pending:
            return
        rows, first = self._pending_rows(), self.state.rows - self._pending_rows()
        inline_rows = self.catalog.inline_rows()
        if rows + inline_rows < INLINE_ROWS:
            data = b"".join(block.tobytes() for block in self._pending)
            self.changes.add_inline(first, rows, data)
        else:
            old, inline = self._small_segments(), self.catalog.inline()
            start = first - inline_rows - sum(part[1] for part in old)
            folded = (block for _, _, path in old for block in self.blocks(path))
            blocks = chain(folded, (self.vectors(data) for _, _, data in inline), self._pending)
            for size, record in self.write_segments(blocks):
                self.changes.add_segment(start, size, record)
                start += size
        self._pending = []

    def write_segments(self, blocks: Iterable[NDArray[Any]]) -> list[tuple[int, FileRecord]]:
        """Writes vectors block by block as segments that are small enough to be rewritten.

        Returns:
            (rows, file) of each segment; the caller adds the records to the catalog.
        """
        most = 4 * SMALL_SEGMENT_ROWS
        rest = (block for block in blocks if len(block))
        block = next(rest, None)
        segments: list[tuple[int, FileRecord]] = []
        while block is not None:
            rows = 0

            def chunks() -> Iterator[bytes]:
                nonlocal block, rows
                while block is not None and rows < most:
                    piece, left = block[: most - rows], block[most - rows :]
                    rows += len(piece)
                    yield piece.tobytes()
                    block = left if len(left) else next(rest, None)

            record = self.write("segments", self.state.precision, chunks())
            segments.append((rows, record))
        return segments

    def check_array(self, array: NDArray[Any], *, by_row: bool) -> None:
        """Checks that an array can be saved (ValueError, see GalleryWriter.put_array)."""
        if array.dtype.kind not in "biufc":
            raise ValueError(f"an array of {array.dtype} holds no plain numbers")
        if by_row and array.shape[:1] != (self.state.rows,):
            raise ValueError(f"an array of {array.shape} for {self.state.rows} rows")

    def put_array(self, name: str, array: NDArray[Any], *, by_row: bool) -> None:
        """Saves an array; replaces an array with the same name."""
        data = np.ascontiguousarray(array)
        record = self.write("arrays", "bin", [data.tobytes()])
        self.drop_array(name)
        self.changes.add_files([record])
        header = {
            "file": record.path,
            "dtype": data.dtype.str,
            "shape": array.shape,
            "generation": self.state.generation,
            "by_row": by_row,
        }
        self.changes.set_meta(f"array:{name}", header)

    def drop_array(self, name: str) -> None:
        """Deletes the array with a name, if there is one."""
        old = self.catalog.array(name)
        if old is not None:
            self.changes.drop_files([old["file"]])
            self.changes.drop_meta(f"array:{name}")

    def content(self, path: str) -> bytes:
        """Returns the content of a file after a check, so that no damage gets a new checksum."""
        with closing(self._open(path)) as file:
            file.check()
            return file.read(0, file.record.size)

    def blocks(self, path: str) -> Iterator[NDArray[Any]]:
        """Yields the vectors of a segment in blocks, after a check of the whole segment."""
        block_bytes = _BLOCK_ROWS * self.state.dim * self.state.dtype.itemsize
        with closing(self._open(path)) as file:
            file.check()
            for start in range(0, file.record.size, block_bytes):
                size = min(block_bytes, file.record.size - start)
                yield self.vectors(file.read(start, size))

    def _open(self, path: str) -> StoredFile:
        records = {record.path: record for record in self.catalog.files()}
        return StoredFile(self.folder, records[path])

    def vectors(self, data: bytes) -> NDArray[Any]:
        """Returns stored bytes as read-only vectors [n, dim]."""
        return np.frombuffer(data, self.state.dtype).reshape(-1, self.state.dim)

    def stored(self) -> Vectors:
        """Returns the vectors of all rows, including uncommitted ones."""
        records = {record.path: record for record in self.catalog.files()}
        rows = self.state.rows - self._pending_rows()
        with ExitStack() as stack:
            opened = {
                path: stack.enter_context(closing(StoredFile(self.folder, records[path])))
                for _, _, path in self.catalog.segments()
            }
            parts = vector_parts(self.catalog, opened, self.state, rows)
        if self._pending:
            block = np.concatenate(self._pending)
            key = hashlib.sha256(block.tobytes()).hexdigest()
            parts = (*parts, VectorPart(self.state.rows - len(block), block, key))
        return Vectors(parts, self.state.dim, self.folder)

    def part_keys(self) -> set[str]:
        """Returns the keys (VectorPart.key) of the committed parts."""
        inline = b"".join(data for _, _, data in self.catalog.inline())
        return {record.sha256 for record in self.committed} | {hashlib.sha256(inline).hexdigest()}

    def _pending_rows(self) -> int:
        return sum(len(block) for block in self._pending)

    def _small_segments(self) -> list[tuple[int, int, str]]:
        """Returns the small segments at the end if they are many enough to be joined, else none."""
        segments = self.catalog.segments()
        large = [i for i, (_, rows, _) in enumerate(segments) if rows >= SMALL_SEGMENT_ROWS]
        small = segments[large[-1] + 1 :] if large else segments
        return small if len(small) >= SMALL_SEGMENTS else []


def open_transaction(folder: Path, *, create: bool) -> tuple[Transaction, SetAside | None]:
    """Begins the transaction of a writer that holds the lock of the gallery.

    Args:
        folder: the gallery.
        create: rename a catalog that cannot be read, and begin a new one.

    Returns:
        The transaction, and the renamed catalog, if any.

    Raises:
        GalleryDamaged: the catalog cannot be read, and `create` is False.
    """
    try:
        return _started(folder, whole=create), None
    except GalleryDamaged:
        if not create:
            raise
    aside = SetAside(folder)
    try:
        return _started(folder, whole=False), aside
    except BaseException:
        aside.undo()
        raise


def _started(folder: Path, *, whole: bool) -> Transaction:
    transaction = Transaction(folder)
    try:
        if whole:
            transaction.catalog.check_structure()
        transaction.start()
    except BaseException:
        transaction.undo()
        raise
    return transaction


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
