"""The files of a gallery: written once, checksummed, never changed.

A file is written under another name, fsynced, renamed and its folder fsynced before the catalog
names it, so a file with a name in the catalog is whole. A reader keeps the descriptor open: a file
that a later writer removes stays readable, and a file that another program cuts gives an error.
Vectors are read through a memory map, which ends the process if the file was cut, so the size of
the file is checked before each use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryDamaged, StorageError, storage_errors
from lmk.embed.files import stamp_of, sync_folder, write_whole
from lmk.embed.plain_files import NotPlainError, open_folder, open_plain

REBUILD = "rebuild it with `lmk build-index`"
REPAIR = "mend it with `lmk index repair`"
_CHUNK = 1 << 20  # bytes hashed at a time
_GAP = 8  # unneeded rows that cost less than another read
_RUN = 8192  # rows of one read


@dataclass(frozen=True)
class FileRecord:
    """Path, size and checksum of a file, as in the catalog.

    Attributes:
        path: relative to the gallery folder, with forward slashes.
        size: size in bytes.
        sha256: SHA-256 of the content, in hexadecimal.
    """

    path: str
    size: int
    sha256: str


def write_file(folder: Path, path: str, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Writes `chunks` as the file `path` of the gallery `folder`, durably.

    Raises:
        StorageError: the disk is full or the folder read-only. No file is left.
    """
    target = folder / path
    digest, size = hashlib.sha256(), 0

    def measured() -> Iterator[bytes | memoryview]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    with storage_errors(target):
        with open_folder(target.parent, below=folder, create=True):
            write_whole(target, measured(), below=folder)
        sync_folder(folder)  # the folder of the file may be new
    return FileRecord(path, size, digest.hexdigest())


def record_tree(folder: Path, path: str) -> list[FileRecord]:
    """Makes the files below `path` durable, and returns their records."""
    top = folder / path
    records = []
    with storage_errors(top):
        for item in sorted(top.rglob("*")):
            if item.is_dir():
                sync_folder(item)
                continue
            with os.fdopen(open_plain(item, below=folder), "rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            records.append(FileRecord(item.relative_to(folder).as_posix(), size, digest))
        sync_folder(top)
    return records


class StoredFile:
    """A file of the gallery, open for reading; its size is checked when it is opened.

    Raises:
        GalleryDamaged: the file is missing or has another size than in the catalog.
        StorageError: the file exists but cannot be opened.
    """

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self.record = record
        self.path = folder / record.path
        try:
            self._descriptor = open_plain(self.path, below=folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._damaged("the file is missing") from error
        except IsADirectoryError as error:
            raise self._damaged("the file has become a folder") from error
        except NotPlainError as error:
            raise self._damaged(f"the file {error.strerror}") from error
        except OSError as error:
            raise _unreadable(self.path, error) from error
        size = os.fstat(self._descriptor).st_size
        if size != record.size:
            self.close()
            raise self._damaged(f"the file has {size} bytes, {record.size} expected")

    def stamp(self) -> str:
        """Returns a text that changes whenever the file is written."""
        return stamp_of(os.fstat(self._descriptor))

    def check(self) -> None:
        """Compares the content with the checksum in the catalog (GalleryDamaged)."""
        digest = hashlib.sha256()
        for offset in range(0, self.record.size, _CHUNK):
            digest.update(self.read(offset, min(_CHUNK, self.record.size - offset)))
        sha256, expected = digest.hexdigest(), self.record.sha256
        if sha256 != expected:
            what = f"the file has changed: sha256 {sha256[:12]}…, {expected[:12]}… expected"
            raise self._damaged(what)

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` (GalleryDamaged if the file was cut)."""
        pieces = []
        while size:
            try:
                piece = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if not piece:
                raise self._damaged("the file was cut while it was open")
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def map(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], Callable[[], None]]:
        """Returns the memory-mapped content as numbers, and a check.

        Both stay usable when the file is closed. The check must be called before the numbers are
        used; it raises GalleryDamaged if the file was cut.
        """
        try:
            # The mapping has its own descriptor, and the system checks the size at once.
            mapping = mmap.mmap(self._descriptor, self.record.size, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise self._damaged("the file was cut while it was open") from error

        def check() -> None:
            if mapping.size() < self.record.size:
                raise self._damaged("the file was cut while it was open")

        return np.frombuffer(mapping, dtype), check

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _damaged(self, what: str) -> GalleryDamaged:
        return GalleryDamaged(what, where=self.path, remedy=REPAIR)


def runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of runs of ascending rows, each suitable for one read."""
    if not rows.size:
        return
    cuts = np.flatnonzero((np.diff(rows) > _GAP) | (np.diff(rows // _RUN) > 0)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from pairwise(edges)


def _unreadable(path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    return StorageError(
        f"cannot read: {reason}", where=path, remedy="check the permissions and the disk"
    )


@contextmanager
def closing_on_error(files: Sequence[Any]) -> Iterator[None]:
    """Closes files or connections if the block raises an exception."""
    try:
        yield
    except BaseException:
        for file in files:
            file.close()
        raise
