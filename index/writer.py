"""GalleryWriter: the one process that changes a gallery.

A commit is one transaction of the catalog. Files are written, fsynced and named by the transaction
before it commits; until then no reader sees them, and what a failed or killed writer left behind
is swept by the next one. Files that a commit replaced stay until the next writer, for readers that
are about to open them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import (
    EmbedderMismatch,
    GalleryDamaged,
    GalleryError,
    NotAGallery,
    storage_errors,
)
from lmk.embed.files import sync_folder
from lmk.index.catalog import ROLES, Catalog, Picture, Role, State
from lmk.index.gallery import Gallery, embedder_folder
from lmk.index.lock import make_folder, set_aside, sweep, take_lock
from lmk.index.segments import (
    VECTOR_DTYPE,
    FileRecord,
    StoredFile,
    record_tree,
    write_file,
)

INLINE_ROWS = 1024  # fewer rows than this stay in the catalog; adding one writes no file
SMALL_SEGMENT_ROWS = 65_536
SMALL_SEGMENTS = 64  # so many small segments at the end are folded into one
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class GalleryWriter:
    """Changes a gallery; everything since the last `commit` happens or nothing does.

    Use it with `with`: leaving without `commit` undoes what was done since the last one. Another
    process can read meanwhile, none can write.

    Attributes:
        path: the gallery folder.
        unchanged: pictures given to `append` that the gallery had already.

    Args:
        path: the gallery folder.
        create: make the folder where there is none; `reset` must follow. A catalog that cannot be
            read is put aside (catalog.db.damaged), and the gallery is a new one.

    Raises:
        NotAGallery: without `create`, where there is no finished gallery.
        UsageError: with `create`, where the folder holds something else.
        GalleryLocked: another process is writing.
        FormatTooNew, GalleryDamaged, StorageError: as the folder is.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        self.path = Path(path)
        self.unchanged = 0
        self._state: State | None = None
        self._committed: list[FileRecord] = []
        self._pending: list[NDArray[np.float16]] = []  # vectors of the last rows, not stored yet
        self._written: list[Path] = []  # to be removed where the transaction fails
        self._failed = False
        if create:
            make_folder(self.path)
        else:
            Catalog.read(self.path).close()  # says what is wrong with it
        self._lock = take_lock(self.path)
        try:
            self._open(create)
            sweep(self.path, {record.path for record in self._committed})
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
        if catalog := getattr(self, "_catalog", None):
            catalog.close()
            for path in self._written:
                _remove(path)
        os.close(self._lock)
        self._lock = -1

    def gallery(self, *, verify: bool = True) -> Gallery | None:
        """Opens what is committed; None where nothing is."""
        try:
            return Gallery.open(self.path, verify=verify)
        except NotAGallery:
            return None

    def reset(self, fingerprint: str, dim: int) -> None:
        """Empties the gallery (rows, labels, settings, embedder) for vectors of that embedder.

        Readers keep seeing the old state until `commit`.

        Raises:
            ValueError: for an empty fingerprint, one that cannot name a folder, or a dim below 1.
        """
        if not _SAFE_NAME.fullmatch(fingerprint[:16]) or dim < 1:
            raise ValueError(f"a gallery of fingerprint {fingerprint!r} and dim {dim}")
        old = self._state
        with self._changing():
            self._catalog.clear()
            self._pending = []
            self._state = State(
                fingerprint=fingerprint,
                dim=dim,
                rows=0,
                generation=old.generation + 1 if old else 0,
                next_file=old.next_file if old else 1,
                created=old.created if old else _now(),
                updated=_now(),
            )

    def install_embedder(self, save: Callable[[Path], None]) -> None:
        """Keeps the embedder in the gallery: `save` writes its files into the folder it is given.

        An intact embedder of the same fingerprint that is there already is kept: the fingerprint
        says that it is the same one.
        """
        folder = embedder_folder(self.path, self._needed().fingerprint)
        path = folder.relative_to(self.path).as_posix()
        records = [record for record in self._committed if record.path.startswith(f"{path}/")]
        with self._changing(), storage_errors(folder):
            if not records or not self._intact(records):
                fresh = folder.with_name(f".{folder.name}")
                shutil.rmtree(fresh, ignore_errors=True)
                self._written += [fresh, folder]
                fresh.mkdir(parents=True)
                save(fresh)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
                records = record_tree(self.path, path)
                sync_folder(folder.parent)
                sync_folder(self.path)
            self._catalog.add_files(records)

    def append(
        self, embeddings: Embeddings, pictures: Sequence[Picture], role: Role = "gallery"
    ) -> int:
        """Adds pictures; a picture whose id and SHA-256 the gallery has is left as it is.

        Args:
            embeddings: their vectors.
            pictures: one for each vector, with the same ids in the same order.
            role: "gallery" for pictures to be found, "distractor" for known non-landmarks.

        Returns:
            The number of pictures added; `unchanged` counts the others.

        Raises:
            EmbedderMismatch: for vectors of another embedder.
            GalleryError: for an id that the gallery has with another content.
            ValueError: for vectors of another dim, ids or a role that do not fit.
        """
        state = self._needed()
        _check(state, embeddings, pictures, role)
        known = self._catalog.known(embeddings.ids)
        for picture in pictures:
            if known.get(picture.id, picture.sha256) != picture.sha256:
                raise GalleryError(
                    "another picture has this id",
                    where=picture.id,
                    remedy="rebuild the gallery with `lmk build-index`, or give it another id",
                )
        new = [i for i, id_ in enumerate(embeddings.ids) if id_ not in known]
        self.unchanged += len(pictures) - len(new)
        if not new:
            return 0
        with self._changing():
            self._catalog.add_pictures(state.rows, [pictures[i] for i in new], role)
            self._pending.append(embeddings.vectors[new].astype(VECTOR_DTYPE))
            rows, generation = state.rows + len(new), state.generation + 1
            self._state = replace(state, rows=rows, generation=generation)
            if self._pending_rows() >= SMALL_SEGMENT_ROWS:
                self._store_pending()
        return len(new)

    def skip(self, path: str, reason: str) -> None:
        """Records a file that was left out, and why."""
        self._needed()
        with self._changing():
            self._catalog.add_skipped(path, reason)

    def set(self, name: str, value: Any) -> None:
        """Saves a JSON value with the gallery (Gallery.setting)."""
        self._needed()
        with self._changing():
            self._catalog.set_meta(f"setting:{name}", value)

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Saves numbers that belong to the rows as they are now (Gallery.array).

        Raises:
            ValueError: for an array that does not hold plain numbers.
        """
        if array.dtype.kind not in "biufc":
            raise ValueError(f"an array of {array.dtype} holds no plain numbers")
        state = self._needed()
        data = np.ascontiguousarray(array)
        with self._changing():
            record = self._write("arrays", "bin", [data.tobytes()])
            old = self._catalog.meta(f"array:{name}")
            if old is not None:
                self._catalog.drop_files([old["file"]])
            self._catalog.add_files([record])
            header = {
                "file": record.path,
                "dtype": data.dtype.str,
                "shape": array.shape,
                "generation": state.generation,
            }
            self._catalog.set_meta(f"array:{name}", header)

    def commit(self) -> None:
        """Makes everything since the last commit durable, and visible to who opens from now on."""
        self._needed()
        with self._changing():
            self._store_pending()
            self._catalog.set_state(replace(self._needed(), updated=_now()))
            self._written = []
            # From here on a failure may or may not have reached the disk: files stay for the next
            # writer, who knows whether the catalog names them.
            self._catalog.commit()
            self._catalog.begin()
            self._start()

    def _open(self, create: bool) -> None:
        try:
            self._catalog = Catalog.write(self.path)
            if create:
                self._catalog.check_structure()
            self._start()
        except GalleryDamaged:
            if not create:
                raise
            if catalog := getattr(self, "_catalog", None):
                catalog.close()
            set_aside(self.path)
            self._catalog = Catalog.write(self.path)
            self._start()

    def _start(self) -> None:
        self._state = self._catalog.state()
        self._committed = self._catalog.files()
        self._pending, self._written = [], []

    def _needed(self) -> State:
        if self._state is None:
            raise ValueError("a new gallery: call reset first")
        return self._state

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """After an error in the block nothing can be committed: half of a change may be there."""
        if self._failed:
            raise GalleryError(
                "an error has undone this change", where=self.path, remedy="open the writer again"
            )
        try:
            yield
        except BaseException:
            self._failed = True
            raise

    def _pending_rows(self) -> int:
        return sum(len(block) for block in self._pending)

    def _store_pending(self) -> None:
        """Puts the pending vectors into the catalog, or with what is there into a segment."""
        if not self._pending:
            return
        rows, first = self._pending_rows(), self._needed().rows - self._pending_rows()
        inline = self._catalog.inline()
        total = rows + sum(part[1] for part in inline)
        blocks = [block.tobytes() for block in self._pending]
        if total < INLINE_ROWS:
            self._catalog.add_inline(first, rows, b"".join(blocks))
        else:
            old = self._small_segments()
            start = self._needed().rows - total - sum(part[1] for part in old)
            chunks = chain(self._contents(old), (part[2] for part in inline), blocks)
            record = self._write("segments", "f16", chunks)
            self._catalog.add_segment(start, self._needed().rows - start, record)
        self._pending = []

    def _small_segments(self) -> list[tuple[int, int, str]]:
        """Returns the small segments at the end once they are many (else none), to be folded."""
        segments = self._catalog.segments()
        large = [i for i, (_, rows, _) in enumerate(segments) if rows >= SMALL_SEGMENT_ROWS]
        small = segments[large[-1] + 1 :] if large else segments
        return small if len(small) >= SMALL_SEGMENTS else []

    def _contents(self, segments: list[tuple[int, int, str]]) -> Iterator[bytes]:
        """Reads segments whole, each checked: a fold must not give damage a new checksum."""
        records = {record.path: record for record in self._catalog.files()}
        for _, _, path in segments:
            file = StoredFile(self.path, records[path])
            try:
                file.check()
                yield file.read(0, file.record.size)
            finally:
                file.close()

    def _write(self, folder: str, suffix: str, chunks: Iterable[bytes]) -> FileRecord:
        state = self._needed()
        path = f"{folder}/{state.next_file:06d}.{suffix}"
        self._state = replace(state, next_file=state.next_file + 1)
        self._written.append(self.path / path)
        return write_file(self.path, path, chunks)

    def _intact(self, records: Sequence[FileRecord]) -> bool:
        for record in records:
            try:
                file = StoredFile(self.path, record)
            except GalleryError:
                return False
            try:
                file.check()
            except GalleryError:
                return False
            finally:
                file.close()
        return True


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


def _check(state: State, embeddings: Embeddings, pictures: Sequence[Picture], role: Role) -> None:
    if embeddings.fingerprint != state.fingerprint:
        raise EmbedderMismatch(
            f"vectors of embedder {embeddings.fingerprint[:16]} for a gallery of embedder"
            f" {state.fingerprint[:16]}",
            remedy="use the gallery's own embedder, or rebuild it with `lmk build-index`",
        )
    if embeddings.dim != state.dim:
        raise ValueError(f"vectors of {embeddings.dim} components in a gallery of {state.dim}")
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    if embeddings.ids != tuple(picture.id for picture in pictures):
        raise ValueError("embeddings and pictures have different ids")
    for picture in pictures:
        if not os.path.isabs(picture.root):  # noqa: PTH117
            raise ValueError(f"the root of picture {picture.id} is not absolute: {picture.root}")


def _remove(path: Path) -> None:
    """Removes what a failed transaction wrote; what stays is left to the next writer's sweep."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
