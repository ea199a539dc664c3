"""GalleryWriter: the one process that changes a gallery.

A commit is one transaction of the catalog. Files are fsynced and named by the transaction before it
commits, and no reader sees them until then. The next writer removes the files that a failed writer
left and those that a commit replaced, so readers can still open the latter.
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
from lmk.index.gallery.deduplicate import LabelDifference, admit, check_pictures, check_vectors
from lmk.index.gallery.embedder_files import install_embedder
from lmk.index.gallery.folder import SetAside, make_folder, sweep
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.transaction import Transaction, open_transaction
from lmk.index.gallery.uncommitted import Uncommitted
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.labels import Role


class GalleryWriter:
    """Context manager that changes a gallery; leaving it without `commit` undoes the changes.

    Other processes can read the gallery meanwhile, and none can write to it.

    Attributes:
        path: the gallery folder.
        unchanged: pictures given to `append` that the gallery had already.
        duplicates: (id given, id that has this content) of the pictures `append` left out.
        relabelled: labelled pictures that `append` put in place of one with the same content.
        conflicts: pictures whose content the gallery also holds under another label.

    Args:
        path: the gallery folder.
        create: make the folder where there is none; `reset` must follow. A catalog that cannot be
            read is renamed to catalog.db.damaged until the commit, or for good after it.
        wait: seconds to wait for another writer.

    Raises:
        NotAGallery: without `create`, where there is no finished gallery.
        UsageError: with `create`, where the folder holds something else.
        GalleryLocked: another process is writing.
        FormatTooNew, GalleryDamaged, UnsafeIndex, StorageError: as the folder is.
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
        self._derived = DerivedFiles(self.path / "cache" / "search", below=self.path)
        self._transaction: Transaction | None = None
        self._process = os.getpid()
        if create:
            make_folder(self.path)
        else:
            refuse_links(self.path)
            if not (self.path / LOCK).exists():  # then nothing is made there
                Catalog.read(self.path).close()  # says what is wrong with it
        self._lock = take_lock(self.path, wait)
        try:
            if not create:
                self._require_gallery()
            t, self._aside = open_transaction(self.path, create=create)
            self._transaction = t
            # Files without a catalog may belong to one that was lost, or that is set aside.
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
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # forks that still run hold a copy of it
        os.close(self._lock)
        self._lock = -1

    # Reading

    def gallery(self, *, verify: bool | None = None) -> Gallery | None:
        """Opens the committed gallery; returns None if there is none."""
        try:
            return Gallery.open(self.path, verify=verify)
        except NotAGallery:
            return None

    @property
    def uncommitted(self) -> Uncommitted:
        """The gallery with the changes that are not committed yet."""
        return Uncommitted(self._t, self._derived)

    def setting(self, name: str) -> Any:
        """Returns the JSON value that `set` saved under `name`, or None."""
        return self._t.catalog.meta(f"setting:{name}")

    # Changing

    def reset(self, fingerprint: str, dim: int, precision: Precision = "f16") -> None:
        """Empties the gallery (rows, labels, settings, embedder) for vectors of that embedder.

        Readers keep seeing the old state until `commit`.

        Args:
            fingerprint: of the embedder.
            dim: components of a vector.
            precision: of the stored vectors: "f16" moves a cosine by less than 1e-3, "f32" by
                nothing, and takes twice the space.

        Raises:
            ValueError: for an empty fingerprint, one that cannot name a folder, or a dim below 1.
        """
        t = self._open_transaction()
        fresh = t.new_state(fingerprint, dim, precision)
        with self._changing(t):
            t.reset(fresh)

    def install_embedder(self, save: Callable[[Path], None], *, replace: bool = False) -> None:
        """Writes the embedder into a new folder of the gallery.

        A damaged one stays until the commit.

        Args:
            save: writes the files into the folder that it is given.
            replace: write it even if the gallery has an intact embedder of the same fingerprint.
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
            embeddings: their vectors.
            pictures: one for each vector, with the same ids in the same order.
            role: "gallery" for pictures to be found, "distractor" for known non-landmarks.
            duplicates: also add a picture whose content and labels a picture of that role has.

        Returns:
            The number of pictures added. `unchanged`, `duplicates` and `relabelled` count the
            others, see `lmk.index.gallery.deduplicate.admit`.

        Raises:
            EmbedderMismatch: for vectors of another embedder or another dim.
            GalleryError: for an id that the gallery has with another content.
            ValueError: for ids or a role that do not fit.
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
        """Adds pictures like `append`, with vectors [n, dim] as another gallery stored them.

        The bits are kept unless the precision of this gallery is the lower one. Without
        `replace_labels` a picture keeps its labels when another one with its id and content is
        given.
        """
        t = self._t
        check_vectors(t.state, vectors.shape[1], fingerprint)
        check_pictures(pictures, role)
        admission = admit(
            t.catalog, pictures, role, duplicates=duplicates, replace_labels=replace_labels
        )
        self.unchanged += admission.unchanged
        self.duplicates += admission.duplicates
        self.conflicts += admission.conflicts
        new = admission.new
        if not new:
            return 0
        replaced = self.remove(change.other for change in admission.relabelled)
        self.relabelled += admission.relabelled
        with self._changing():
            most = 4 * sizes.SMALL_SEGMENT_ROWS  # so that no segment is too large to rewrite
            for start in range(0, len(new), most):
                some = new[start : start + most]
                t.changes.add_pictures(t.state.rows, [pictures[i] for i in some], role)
                t.add_vectors(vectors[some].astype(t.state.dtype))
        return len(new) - replaced

    def remove(self, ids: Iterable[str]) -> int:
        """Removes pictures; the row numbers of the others stay, and the ids are free again.

        Returns:
            The number of pictures removed.

        Raises:
            GalleryError: for an id that the gallery does not have; then nothing is removed.
        """
        t = self._t
        known = self.uncommitted.require(ids)
        if not known:
            return 0
        count = len(set(known.values()))  # two ids may be forms of one name
        with self._changing():
            t.changes.remove_pictures(known)
            removed, generation = t.state.removed + count, t.state.generation + 1
            t.change_state(removed=removed, generation=generation)
        return count

    def compact(self) -> bool:
        """Numbers the rows densely, frees the space of removed rows and joins small files.

        Arrays saved for the present rows are renumbered too. Open readers are not disturbed.

        Returns:
            Whether anything was changed.

        Raises:
            GalleryDamaged: when a file that must be written anew has changed.
        """
        with self._changing() as t:
            done = compact(t)
            self._compacted |= done
            return done

    def rewrite_catalog(self) -> None:
        """Makes the next commit write the catalog anew, without bytes behind its end."""
        self._compacted = True

    def replace_vectors(self, rows: ArrayLike, vectors: NDArray[np.float32]) -> None:
        """Stores other vectors for rows, as a repair does.

        Args:
            rows: int [n], different, not removed.
            vectors: float32 [n, dim], of length 1.

        Raises:
            GalleryDamaged: where damaged vectors have a row that is neither given nor removed.
            ValueError: for rows that are not there, or vectors that do not fit.
        """
        t = self._t
        wanted, unit_vectors = check_replacement(t, np.asarray(rows, np.int64), vectors)
        with self._changing():
            replace_vectors(t, wanted, unit_vectors)

    def skip(self, path: str, reason: str) -> None:
        """Records a file that was left out, and why."""
        with self._changing() as t:
            t.changes.add_skipped(path, reason)

    def unskip(self, path: str) -> None:
        """Deletes the record of a file that was left out."""
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
        """Saves numbers that belong to the rows as they are now (Gallery.array).

        Args:
            name: replaces what was saved under it.
            array: plain numbers.
            by_row: array[r] belongs to row r, and moves with it in `compact`.

        Raises:
            ValueError: for an array that does not hold plain numbers, or not one for each row.
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
                with suppress(LmkError):  # it needs twice the room for a while
                    t.changes.vacuum()
                self._compacted = False
            t.changes.begin()
            t.start()
            named = {record.path for record in t.committed}
            self._tidy_after_another(named)
            kept = [(record, stamp) for record, stamp in written if record.path in named]
            if kept:
                note_written(self.path, kept, named)
            self._derived.prune(self._t.part_keys())

    # Parts

    def _tidy_after_another(self, named: Collection[str]) -> None:
        """Removes, after the first commit, what belongs to a catalog that was lost or set aside."""
        with suppress(StorageError):  # the next writer does it
            if self._aside is not None:
                self._aside.settle()
            if self._sweeps_later:
                sweep(self.path, named)
        self._aside, self._sweeps_later = None, False

    @property
    def _t(self) -> Transaction:
        """The transaction, of a gallery that was committed or reset."""
        t = self._open_transaction()
        _ = t.state  # refuses a new gallery
        return t

    def _open_transaction(self) -> Transaction:
        if self._transaction is None:
            raise ValueError(f"the writer of {self.path} is closed")
        check_process(self._process, self.path)
        return self._transaction

    def _require_gallery(self) -> None:
        """Raises the error of an unusable catalog; its first build may just have ended."""
        try:
            Catalog.read(self.path).close()
        except NotAGallery:
            self.close()  # or this process would be named as the one that builds it
            Catalog.read(self.path).close()
            raise

    @contextmanager
    def _changing(self, transaction: Transaction | None = None) -> Iterator[Transaction]:
        """After an error in the block nothing can be committed: half of a change may be there."""
        t = self._t if transaction is None else transaction
        if self._failed:
            remedy = "open the writer again"
            raise GalleryError("an error has undone this change", where=self.path, remedy=remedy)
        try:
            yield t
        except BaseException:
            self._failed = True
            raise
