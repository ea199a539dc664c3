"""GalleryWriter: the one process that changes a gallery.

A commit is one transaction of the catalog. Files are written, fsynced and named by the transaction
before it commits; until then no reader sees them, and what a failed or killed writer left behind
is swept by the next one. Files that a commit replaced stay until the next writer, for readers that
are about to open them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmk.embed import interrupts
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryDamaged, GalleryError, LmkError, NotAGallery, StorageError
from lmk.embed.process import check_process
from lmk.embed.shell_words import shell_word
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.layout import LOCK, refuse_links
from lmk.index.catalog.lock import take_lock
from lmk.index.catalog.records import DTYPES, SAFE_NAME, Picture, Precision, State
from lmk.index.gallery import transaction as sizes  # read when used: tests make them small
from lmk.index.gallery.checksums import note_written
from lmk.index.gallery.compact import compact, replace_vectors
from lmk.index.gallery.deduplicate import (
    LabelDifference,
    admit,
    check_pictures,
    check_vectors,
    shared_content,
)
from lmk.index.gallery.embedder_files import install_embedder
from lmk.index.gallery.folder import SetAside, make_folder, next_number, sweep
from lmk.index.gallery.gallery import Gallery, embedder_files, embedder_folder
from lmk.index.gallery.transaction import Transaction
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.labels import Membership, Role
from lmk.index.vectors.view import View


class GalleryWriter:
    """Changes a gallery; everything since the last `commit` happens or nothing does.

    Use it with `with`: leaving without `commit` undoes what was done since the last one. Another
    process can read meanwhile, none can write.

    Attributes:
        path: the gallery folder.
        unchanged: pictures given to `append` that the gallery had already.
        duplicates: (id given, id that has this content) of the pictures `append` left out.
        relabelled: pictures that `append` put in the place of one with the same content, because
            they bring a label.
        conflicts: pictures whose content the gallery also holds under another label.

    Args:
        path: the gallery folder.
        create: make the folder where there is none; `reset` must follow. A catalog that cannot be
            read is put aside (catalog.db.damaged), and the gallery is a new one. Without a commit
            it is put back; files that it may name stay until the commit.
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
            t = self._transaction = self._open(create)
            # Files without a catalog may belong to one that was lost, or that is set aside.
            self._sweeps_later = t.old_state is None
            if not self._sweeps_later:
                sweep(self.path, {record.path for record in t.committed})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Undoes what was not committed and lets others write; a second call does nothing."""
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
        """Opens what is committed; None where nothing is."""
        try:
            return Gallery.open(self.path, verify=verify)
        except NotAGallery:
            return None

    @property
    def rows(self) -> int:
        """Row numbers given so far, with what is not committed yet."""
        return self._t.state.rows

    @property
    def fingerprint(self) -> str:
        """Of the embedder of the gallery."""
        return self._t.state.fingerprint

    @property
    def embedder_dir(self) -> Path:
        """Folder of the embedder, with what is not committed yet."""
        return embedder_folder(self.path, self.fingerprint, self._t.catalog.files())

    def embedder_checksums(self) -> dict[Path, str]:
        """Returns the SHA-256 that each file of the embedder must have."""
        files = embedder_files(self.fingerprint, self._t.catalog.files())
        return {self.path / record.path: record.sha256 for record in files}

    def setting(self, name: str) -> Any:
        """Returns the JSON value saved under `name`, or None, with what is not committed yet."""
        return self._t.catalog.meta(f"setting:{name}")

    def arrays(self) -> dict[str, Path]:
        """Returns the file of each array, by name."""
        found = self._t.catalog.arrays()
        return {name: self.path / header["file"] for name, header in found.items()}

    def membership(self) -> Membership:
        """Returns role and labels of each row, with what is not committed yet (GalleryDamaged)."""
        return self._t.catalog.membership(self._t.state)

    def view(self, role: Role = "gallery") -> View:
        """Returns what a search looks at, with what is not committed yet (GalleryDamaged)."""
        t, membership = self._t, self.membership()
        mask = membership.role(role)
        return View(t.stored(), mask, t.state.fingerprint, membership, self._derived)

    def find(self, ids: Iterable[str]) -> dict[str, int]:
        """Returns the rows of those ids that the gallery has, with what is not committed yet."""
        return {id_: row for id_, (row, _) in self._t.catalog.known(ids).items()}

    def removed_ids(self, ids: Iterable[str]) -> set[str]:
        """Returns those ids whose picture was removed since the last `compact`."""
        return self._t.catalog.removed_ids(ids)

    def shared(self) -> NDArray[np.int64]:
        """Returns the rows of distractors whose content a gallery picture has too, ascending."""
        return shared_content(self._t.catalog, self.membership())

    def pictures(self, rows: ArrayLike) -> list[Picture]:
        """Returns the pictures of rows that were not removed (GalleryDamaged).

        It works where vectors are missing or damaged and the gallery cannot be opened.
        """
        return self._t.catalog.pictures(np.asarray(rows, np.int64))

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
        if not SAFE_NAME.fullmatch(fingerprint) or dim < 1 or precision not in DTYPES:
            raise ValueError(f"a gallery of fingerprint {fingerprint!r} and dim {dim}, {precision}")
        with self._changing() as t:
            old = t.old_state
            fresh = State(
                fingerprint=fingerprint,
                dim=dim,
                rows=0,
                generation=old.generation + 1 if old else 0,
                next_file=old.next_file if old else next_number(self.path),
                created=old.created if old else _now(),
                updated=_now(),
                precision=precision,
            )
            t.reset(fresh)

    def install_embedder(self, save: Callable[[Path], None], *, replace: bool = False) -> None:
        """Keeps the embedder in the gallery: `save` writes its files into the folder it is given.

        The folder is a new one; a damaged one stays until the commit.

        Args:
            save: writes the files.
            replace: also where an intact embedder of the same fingerprint is there; it is kept
                otherwise, because the fingerprint says that it is the same one.
        """
        t = self._t
        with self._changing():
            install_embedder(t, save, replace=replace)

    def append(
        self,
        embeddings: Embeddings,
        pictures: Sequence[Picture],
        role: Role = "gallery",
        *,
        duplicates: bool = False,
    ) -> int:
        """Adds pictures; one whose id, SHA-256 and labels the gallery has is left as it is.

        Args:
            embeddings: their vectors.
            pictures: one for each vector, with the same ids in the same order.
            role: "gallery" for pictures to be found, "distractor" for known non-landmarks.
            duplicates: also add a picture whose content and labels a picture of that role has.

        Returns:
            By how many pictures the gallery has grown; `unchanged`, `duplicates` and `relabelled`
            tell of the others. See `lmk.index.gallery.deduplicate.admit` for which is which.

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
        """As `append`, for vectors [n, dim] as another gallery stored them: they keep every bit.

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
        t, wanted = self._t, list(dict.fromkeys(ids))
        known = self.find(wanted)
        for id_ in wanted:
            if id_ not in known:
                remedy = (
                    f"`lmk index list {shell_word(self.path)} --pictures` shows the ids there are"
                )
                raise GalleryError(
                    "no picture of the gallery has this id", where=id_, remedy=remedy
                )
        if not wanted:
            return 0
        count = len(set(known.values()))  # two ids may be forms of one name
        with self._changing():
            t.changes.remove_pictures(known)
            removed, generation = t.state.removed + count, t.state.generation + 1
            t.change_state(removed=removed, generation=generation)
        return count

    def compact(self) -> bool:
        """Numbers the rows densely, gives back the space of the removed ones, joins small files.

        Arrays saved for the rows as they are now are carried over. Readers keep what they opened.

        Returns:
            Whether there was anything to do.

        Raises:
            GalleryDamaged: when a file that must be written anew has changed.
        """
        with self._changing() as t:
            done = compact(t)
            self._compacted |= done
            return done

    def rewrite_catalog(self) -> None:
        """Has the next commit write the catalog anew, without what lies behind its end."""
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
        wanted, t = np.asarray(rows, np.int64), self._t
        order = np.argsort(wanted)
        wanted = wanted[order]
        # Embeddings refuses vectors that are not of length 1.
        given = Embeddings(vectors[order], tuple(map(str, wanted.tolist())), t.state.fingerprint)
        alive = t.catalog.alive(t.state)
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= t.state.rows or not alive[wanted].all()):
            raise ValueError("vectors for rows that the gallery does not have")
        if given.dim != t.state.dim:
            raise ValueError(f"vectors of {given.dim} components in a gallery of {t.state.dim}")
        with self._changing():
            replace_vectors(t, wanted, given.vectors)

    def skip(self, path: str, reason: str) -> None:
        """Records a file that was left out, and why."""
        t = self._t
        with self._changing():
            t.changes.add_skipped(path, reason)

    def unskip(self, path: str) -> None:
        """Forgets that a file was left out."""
        t = self._t
        with self._changing():
            t.changes.drop_skipped(path)

    def set(self, name: str, value: Any) -> None:
        """Saves a JSON value with the gallery (Gallery.setting)."""
        t = self._t
        with self._changing():
            t.changes.set_meta(f"setting:{name}", value)

    def put_array(self, name: str, array: NDArray[Any], *, by_row: bool = False) -> None:
        """Saves numbers that belong to the rows as they are now (Gallery.array).

        Args:
            name: replaces what was saved under it.
            array: plain numbers.
            by_row: array[r] belongs to row r, and moves with it in `compact`.

        Raises:
            ValueError: for an array that does not hold plain numbers, or not one for each row.
        """
        if array.dtype.kind not in "biufc":
            raise ValueError(f"an array of {array.dtype} holds no plain numbers")
        rows = self._t.state.rows
        if by_row and array.shape[:1] != (rows,):
            raise ValueError(f"an array of {array.shape} for {rows} rows")
        with self._changing() as t:
            t.put_array(name, array, by_row=by_row)

    def drop_array(self, name: str) -> None:
        """Forgets an array."""
        t = self._t
        with self._changing():
            t.drop_array(name)

    def commit(self) -> None:
        """Makes everything since the last commit durable, and visible to who opens from now on."""
        t = self._t
        with self._changing():
            interrupts.check()
            t.store_pending()
            t.change_state(updated=_now())
            t.changes.set_state(t.state)
            written, t.written = t.records, []
            # From here on a failure may or may not have reached the disk: files stay for the next
            # writer, who knows whether the catalog names them.
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
        """Says what is wrong with the catalog; its first build may just have ended."""
        try:
            Catalog.read(self.path).close()
        except NotAGallery:
            self.close()  # or this process would be named as the one that builds it
            Catalog.read(self.path).close()
            raise

    def _open(self, create: bool) -> Transaction:
        transaction = None
        try:
            transaction = Transaction(self.path)
            if create:
                transaction.catalog.check_structure()
            transaction.start()
            return transaction
        except BaseException as error:
            if transaction is not None:
                transaction.undo()
            if not create or not isinstance(error, GalleryDamaged):
                raise
        self._aside = SetAside(self.path)
        transaction = Transaction(self.path)
        transaction.start()
        return transaction

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        """After an error in the block nothing can be committed: half of a change may be there."""
        if self._failed:
            raise GalleryError(
                "an error has undone this change", where=self.path, remedy="open the writer again"
            )
        transaction = self._open_transaction()
        try:
            yield transaction
        except BaseException:
            self._failed = True
            raise


def add(
    path: str | os.PathLike[str],
    embeddings: Embeddings,
    pictures: Sequence[Picture],
    role: Role = "gallery",
) -> int:
    """Adds pictures to an existing gallery in one commit; see GalleryWriter.append."""
    with GalleryWriter(path) as writer:
        added = writer.append(embeddings, pictures, role)
        writer.commit()
    return added


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
