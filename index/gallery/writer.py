"""GalleryWriter: the one process that changes a gallery.

A commit is one transaction of the catalog. It names files that are already fsynced, and readers see
them after the commit. The next writer removes the files that a failed writer has left and those
that a commit has replaced, so readers can still open the latter.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmk.embed import interrupts
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryError, LmkError, NotAGallery, StorageError
from lmk.embed.process import check_process
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.layout import LOCK, refuse_links
from lmk.index.catalog.lock import take_lock
from lmk.index.catalog.records import Picture, Precision
from lmk.index.gallery import transaction as sizes  # read when used: tests make them small
from lmk.index.gallery.checksums import note_written
from lmk.index.gallery.compact import check_replacement, compact, replace_vectors
from lmk.index.gallery.deduplicate import (
    LabelDifference,
    check_pictures,
    check_vectors,
    deduplicate,
)
from lmk.index.gallery.embedder_files import install_embedder
from lmk.index.gallery.folder import SetAside, make_folder, search_files, sweep
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.transaction import Transaction, open_transaction
from lmk.index.gallery.uncommitted import Uncommitted
from lmk.index.vectors.labels import Role


class GalleryWriter:
    """Context manager that changes a gallery; leaving it without `commit` undoes the changes.

    Meanwhile, other processes can read the gallery but not write to it.

    Attributes:
        path: the gallery folder.
        unchanged, duplicates, relabelled, conflicts: results of all calls of `append`; see
            `lmk.index.gallery.deduplicate.Deduplication`.

    Args:
        path: the gallery folder.
        create: create the folder if it does not exist; `reset` must follow. A catalog that cannot
            be read is renamed to catalog.db.damaged; it returns unless there is a commit.
        wait: seconds to wait for another writer.

    Raises:
        NotAGallery: there is no finished gallery, and `create` is False.
        UsageError: the folder holds something else, and `create` is True.
        GalleryLocked: another process is writing.
        FormatTooNew, GalleryDamaged, UnsafeIndex, StorageError: the folder cannot be used.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = False, wait: float = 0.0
    ) -> None:
        self.path = Path(path)
        self.unchanged = 0
        self.duplicates: list[tuple[str, str]] = []
        self.relabelled: list[LabelDifference] = []
        self.conflicts: list[LabelDifference] = []
        self._failed = self._compacted = self._sweeps_later = False
        self._aside: SetAside | None = None
        self._derived = search_files(self.path)
        self._transaction: Transaction | None = None
        self._process = os.getpid()
        if create:
            make_folder(self.path)
        else:
            refuse_links(self.path)
            if not (self.path / LOCK).exists():  # no lock is created in a folder without a gallery
                Catalog.read(self.path).close()
        self._lock = take_lock(self.path, wait)
        try:
            if not create:
                self._require_gallery()
            t, self._aside = open_transaction(self.path, create=create)
            self._transaction = t
            # Files without a catalog may belong to a catalog that was lost or is set aside.
            self._sweeps_later = t.old_state is None
            if not self._sweeps_later:
                sweep(self.path, {record.path for record in t.committed})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Undoes uncommitted changes and frees the lock; a second call does nothing."""
        if self._lock < 0:
            return
        if self._transaction is not None:
            self._transaction.undo()
            self._transaction = None
        if os.getpid() == self._process:
            if self._aside is not None and self.gallery() is None:  # nothing was committed
                self._aside.undo()
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # forks that still run have a copy of it
        os.close(self._lock)
        self._lock = -1

    def gallery(self, *, verify: bool | None = None) -> Gallery | None:
        """Opens the committed gallery; returns None if there is none."""
        try:
            return Gallery.open(self.path, verify=verify)
        except NotAGallery:
            return None

    @property
    def uncommitted(self) -> Uncommitted:
        """The gallery with the uncommitted changes."""
        return Uncommitted(self._t, self._derived)

    def setting(self, name: str) -> Any:
        """Returns the JSON value that `set` saved under `name`, or None."""
        return self._t.catalog.meta(f"setting:{name}")

    def reset(self, fingerprint: str, dim: int, precision: Precision = "f16") -> None:
        """Empties the gallery (rows, labels, settings, embedder) for vectors of an embedder.

        Readers see the old state until `commit`.

        Args:
            fingerprint: fingerprint of the embedder.
            dim: number of components of a vector.
            precision: precision of the stored vectors: "f16" changes a cosine by less than 1e-3,
                "f32" does not change it and takes twice the space.

        Raises:
            ValueError: the fingerprint cannot be the name of a folder, or dim is below 1.
        """
        t = self._open_transaction()
        state = t.new_state(fingerprint, dim, precision)
        with self._changing(t):
            t.reset(state)

    def install_embedder(self, save: Callable[[Path], None], *, replace: bool = False) -> None:
        """Writes the embedder into a new folder of the gallery; an old one stays until the commit.

        Args:
            save: writes the files into the folder that it receives.
            replace: write the files even if the gallery has an intact embedder with the same
                fingerprint.
        """
        with self._changing() as t:
            install_embedder(t, save, replace=replace)

    def append(
        self,
        embeddings: Embeddings,
        pictures: Sequence[Picture],
        role: Role = "gallery",
        *,
        duplicates: bool = False,
    ) -> int:
        """Adds pictures, except those that the gallery has with the same SHA-256 and labels.

        Args:
            embeddings: the vectors of the pictures.
            pictures: the pictures, with the ids of the vectors in the same order.
            role: "gallery" for landmarks, "distractor" for known non-landmarks.
            duplicates: also add pictures with the content and labels of a picture of this role.

        Returns:
            The number of pictures added. `unchanged`, `duplicates` and `relabelled` describe the
            others; see `lmk.index.gallery.deduplicate.deduplicate`.

        Raises:
            EmbedderMismatch: the vectors have another embedder or another dim.
            GalleryError: the gallery has an id of the pictures with another content.
            ValueError: the ids or the role do not fit.
        """
        if embeddings.ids != tuple(picture.id for picture in pictures):
            raise ValueError("embeddings and pictures have different ids")
        vectors, fingerprint = embeddings.vectors, embeddings.fingerprint
        return self.append_stored(vectors, fingerprint, pictures, role, duplicates=duplicates)

    def append_stored(
        self,
        vectors: NDArray[Any],
        fingerprint: str,
        pictures: Sequence[Picture],
        role: Role = "gallery",
        *,
        duplicates: bool = False,
        replace_labels: bool = True,
    ) -> int:
        """Adds pictures like `append`, with vectors [n, dim] in the form of another gallery.

        The vectors do not change unless this gallery has a lower precision. If `replace_labels` is
        False, a picture in the gallery keeps its labels when a picture with its id and content is
        added.
        """
        t = self._t
        check_vectors(t.state, vectors.shape[1], fingerprint)
        check_pictures(pictures, role)
        selection = deduplicate(
            t.catalog, pictures, role, duplicates=duplicates, replace_labels=replace_labels
        )
        self.unchanged += selection.unchanged
        self.duplicates += selection.duplicates
        self.conflicts += selection.conflicts
        new = sorted(selection.new)
        if not new:
            return 0
        replaced = self.remove(change.other for change in selection.relabelled)
        self.relabelled += selection.relabelled
        with self._changing():
            most = 4 * sizes.SMALL_SEGMENT_ROWS  # so that no segment is too large to rewrite
            for start in range(0, len(new), most):
                some = new[start : start + most]
                t.changes.add_pictures(t.state.rows, [pictures[i] for i in some], role)
                t.add_vectors(vectors[some].astype(t.state.dtype))
        return len(new) - replaced

    def remove(self, ids: Iterable[str]) -> int:
        """Removes pictures; other row numbers do not change, and the ids can be used again.

        Returns:
            The number of pictures removed.

        Raises:
            GalleryError: the gallery does not have one of the ids. Nothing is removed.
        """
        t = self._t
        rows = self.uncommitted.require(ids)
        if not rows:
            return 0
        count = len(set(rows.values()))  # two ids may be forms of one name
        with self._changing():
            t.changes.remove_pictures(rows)
            removed, generation = t.state.removed + count, t.state.generation + 1
            t.change_state(removed=removed, generation=generation)
        return count

    def compact(self) -> bool:
        """Numbers the rows densely, frees the space of removed rows and joins small files.

        Arrays of the present rows are renumbered too. Open readers do not change.

        Returns:
            True if anything has changed.

        Raises:
            GalleryDamaged: a file that must be rewritten has changed.
        """
        with self._changing() as t:
            done = compact(t)
            self._compacted |= done
            return done

    def rewrite_catalog(self) -> None:
        """Makes the next commit rewrite the catalog, without bytes behind its end."""
        self._compacted = True

    def replace_vectors(self, rows: ArrayLike, vectors: NDArray[np.float32]) -> None:
        """Stores other vectors for rows, as a repair does.

        Args:
            rows: int [n], different, not removed.
            vectors: float32 [n, dim], of length 1.

        Raises:
            GalleryDamaged: damaged vectors have a row that is neither in `rows` nor removed.
            ValueError: a row does not exist, or the vectors do not fit.
        """
        t = self._t
        wanted, unit_vectors = check_replacement(t, np.asarray(rows, np.int64), vectors)
        with self._changing():
            replace_vectors(t, wanted, unit_vectors)

    def skip(self, path: str, reason: str) -> None:
        """Records a skipped file and the reason."""
        with self._changing() as t:
            t.changes.add_skipped(path, reason)

    def unskip(self, path: str) -> None:
        """Deletes the record of a skipped file."""
        with self._changing() as t:
            t.changes.drop_skipped(path)

    def set(self, name: str, value: Any) -> None:
        """Saves a JSON value with the gallery (Gallery.setting)."""
        with self._changing() as t:
            t.changes.set_meta(f"setting:{name}", value)

    def set_landmarks(self, details: Iterable[LandmarkDetails]) -> None:
        """Replaces the details of all landmarks, which may have no picture (Gallery.details_of)."""
        with self._changing() as t:
            t.changes.set_landmarks(details)

    def put_array(self, name: str, array: NDArray[Any], *, by_row: bool = False) -> None:
        """Saves numbers that belong to the present rows (Gallery.array).

        Args:
            name: name of the array; an array with this name is replaced.
            array: plain numbers.
            by_row: array[r] belongs to row r, and `compact` renumbers it.

        Raises:
            ValueError: the array does not hold plain numbers, or lacks one for each row.
        """
        t = self._t
        t.check_array(array, by_row=by_row)
        with self._changing():
            t.put_array(name, array, by_row=by_row)

    def drop_array(self, name: str) -> None:
        """Deletes an array."""
        with self._changing() as t:
            t.drop_array(name)

    def commit(self) -> None:
        """Makes the changes since the last commit durable and visible to later readers."""
        with self._changing() as t:
            interrupts.check()
            written = t.finish()
            t.changes.commit()
            if self._compacted:
                with suppress(LmkError):  # it needs twice the space for a while
                    t.changes.vacuum()
                self._compacted = False
            t.changes.begin()
            t.start()
            named = {record.path for record in t.committed}
            self._tidy_after_another(named)
            new = [(record, stamp) for record, stamp in written if record.path in named]
            if new:
                note_written(self.path, new, named)
            self._derived.prune(self._t.part_keys())

    def _tidy_after_another(self, named: Collection[str]) -> None:
        """Removes the files of a catalog that was lost or set aside, after the first commit."""
        with suppress(StorageError):  # the next writer removes them
            if self._aside is not None:
                self._aside.settle()
            if self._sweeps_later:
                sweep(self.path, named)
        self._aside, self._sweeps_later = None, False

    @property
    def _t(self) -> Transaction:
        """The transaction of a gallery that was committed or reset."""
        t = self._open_transaction()
        _ = t.state  # raises ValueError for a new gallery
        return t

    def _open_transaction(self) -> Transaction:
        if self._transaction is None:
            raise ValueError(f"the writer of {self.path} is closed")
        check_process(self._process, self.path)
        return self._transaction

    def _require_gallery(self) -> None:
        """Checks that the catalog is usable; its first build may just have ended."""
        try:
            Catalog.read(self.path).close()
        except NotAGallery:
            self.close()  # else the error would name this process as the builder
            Catalog.read(self.path).close()
            raise

    @contextmanager
    def _changing(self, transaction: Transaction | None = None) -> Iterator[Transaction]:
        """Context of a change; an error in the block, perhaps in mid-change, ends the writer."""
        t = self._t if transaction is None else transaction
        if self._failed:
            what, remedy = "an error has undone this change", "open the writer again"
            raise GalleryError(what, where=self.path, remedy=remedy)
        try:
            yield t
        except BaseException:
            self._failed = True
            raise
