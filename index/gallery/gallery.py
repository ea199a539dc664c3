"""Gallery: a folder of labelled vectors, opened for reading.

Later commits of a writer, even a rebuild, change neither the rows nor the labels of an open
Gallery. The gallery folder NAME.lmk contains:

    catalog.db           names every other file with its checksum (index/catalog)
    segments/000001.f16  vectors in half precision (or .f32), never changed (index/vectors/files.py)
    embedder/<16 characters of its fingerprint>/  files of the embedder; the name ends with a
                         number (-000003) if a folder with this name existed before
    arrays/000002.bin    numbers per row or per label that later steps store
    cache/               data that can be computed again; the catalog does not name them
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryDamaged
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.catalog import Catalog, entry_errors
from lmk.index.catalog.database import unfinished
from lmk.index.catalog.landmarks import DetailsTable
from lmk.index.catalog.pictures import PictureTable
from lmk.index.catalog.records import Picture, State, picture_of
from lmk.index.gallery.checksums import check_files
from lmk.index.gallery.embedder_paths import EMBEDDER, embedder_folder
from lmk.index.gallery.folder import search_files
from lmk.index.gallery.info import GalleryInfo, bytes_below
from lmk.index.gallery.parts import vector_parts
from lmk.index.vectors.files import StoredFile, closing_on_error
from lmk.index.vectors.labels import Role
from lmk.index.vectors.vectors import Vectors, row_blocks
from lmk.index.vectors.view import View

_BLOCK_ROWS = 8192


class Gallery:
    """A gallery in the state in which it was opened; use `Gallery.open`, and `with` or `close`.

    Several threads may use it. In a fork of its process it raises ForkedProcess.

    Attributes:
        path: the gallery folder.
        fingerprint: fingerprint of the embedder of its vectors.
        dim: number of components of a vector.
        rows: number of row numbers used so far, for pictures of both roles; they are 0 to rows - 1.
        removed: number of rows that were removed.
        precision: precision of the stored vectors: "f16" or "f32".
        generation: number of changes of the rows; a key for data that are derived from them.
        created: UTC, ISO 8601, to the microsecond; identifies a gallery whose folder was moved.
        embedder_dir: folder of the embedder; a rebuild or a repair uses another folder.
        stored: the memory-mapped vectors of all rows.
        derived: files that searches derive from the vectors.
        membership: role and labels of each row, also in the next four attributes.
        alive: bool [rows], False for removed rows.
        label_names: the labels, sorted.
        label_offsets, label_codes: int64 [rows + 1], int32 [...]; row r has the labels
            label_names[c] for c in label_codes[label_offsets[r] : label_offsets[r + 1]].
    """

    def __init__(self, catalog: Catalog, state: State, *, verify: bool | None) -> None:
        self.path = catalog.folder
        self.fingerprint = state.fingerprint
        self.dim = state.dim
        self.rows = state.rows
        self.removed = state.removed
        self.precision = state.precision
        self.generation = state.generation
        self.created = state.created
        self._state = state
        self._catalog = catalog
        self._pictures = PictureTable(catalog)
        self._details = DetailsTable(catalog)
        self._files: dict[str, StoredFile] = {}
        opened: list[StoredFile] = []
        with closing_on_error(opened), entry_errors(catalog.damaged):
            self._open_files(opened, verify=verify)
            records = [file.record for file in opened]
            self.embedder_dir = embedder_folder(self.path, state.fingerprint, records)
            parts = vector_parts(catalog, self._files, state, self.rows)
            self.stored = Vectors(parts, self.dim, self.path)
            self.membership = catalog.membership(state)
        self.label_names = self.membership.names
        self.label_offsets = self.membership.offsets
        self.label_codes = self.membership.codes
        self.alive = self.membership.alive
        self.derived = search_files(self.path)
        self.close = weakref.finalize(self, _close, catalog, opened)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool | None = None) -> Gallery:
        """Returns the gallery in a folder, in its present state.

        Args:
            path: the folder.
            verify: compare files with their checksums (about 1 s per GB). None: those that have
                changed since they were last compared; True: all; False: only their sizes.

        Raises:
            NotAGallery: the folder is no gallery, or its build never finished.
            FormatTooNew: a newer lmk wrote the gallery.
            GalleryDamaged: a file is missing, cut or changed.
            UnsafeIndex: the folder contains a link or a special file.
        """
        folder = Path(path)
        while True:
            catalog = Catalog.read(folder)
            state = None
            try:
                with entry_errors(catalog.damaged):
                    state = catalog.snapshot_state()
                if state is None:
                    raise unfinished(folder)
                return cls(catalog, state, verify=verify)
            except BaseException as error:
                catalog.close()
                # Between reading the catalog and opening its files, two writers may have run: the
                # second one removes the files that the first one has replaced. Then try again.
                if not isinstance(error, GalleryDamaged) or not moved_on(folder, state):
                    raise

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def role_rows(self, role: Role) -> NDArray[np.int64]:
        """Returns the ascending row numbers of a role, without removed rows, int64 [n]."""
        return np.flatnonzero(self.membership.role(role)).astype(np.int64)

    def view(self, role: Role = "gallery") -> View:
        """Returns the view for a search of a role; it stays usable when the gallery closes."""
        mask = self.membership.role(role)
        return View(self.stored, mask, self.fingerprint, self.membership, self.derived)

    def vectors(self, rows: ArrayLike) -> NDArray[np.float32]:
        """Returns the vectors of rows (any order, repeats allowed), float32 [n, dim], unit rows.

        Half precision changes a cosine by less than 1e-3.

        Raises:
            IndexError: the gallery does not have a row.
            GalleryDamaged: a file was cut or changed since it was opened.
        """
        return self.stored.read(self._checked(rows))

    def embeddings(self, role: Role) -> Embeddings:
        """Returns all vectors of a role with their ids, in row order."""
        rows = self.role_rows(role)
        return Embeddings(self.vectors(rows), tuple(self.ids(rows)), self.fingerprint)

    def ids(self, rows: ArrayLike) -> list[str]:
        """Returns the picture ids of rows (IndexError, also for removed ones; GalleryDamaged)."""
        wanted = self._living(rows)
        with self._reading():
            return [entry.id for entry in self._pictures.rows(wanted)]

    def pictures(self, rows: ArrayLike) -> list[Picture]:
        """Returns the pictures of rows (IndexError, also for removed ones; GalleryDamaged)."""
        wanted = self._living(rows)
        with self._reading():
            return [
                picture_of(entry, self.labels(entry.row), self._roots[entry.root])
                for entry in self._pictures.rows(wanted)
            ]

    def find(self, ids: Iterable[str]) -> dict[str, int]:
        """Returns the row of each id that the gallery has."""
        with self._reading():
            return {id_: row for id_, (row, _) in self._pictures.lookup(ids).items()}

    def same_content(self, sha256: str, role: Role) -> list[int]:
        """Returns the ascending rows of a role whose picture has a SHA-256."""
        with self._reading():
            return [row for row, _ in self._pictures.same_content(sha256, role)]

    def entries(self) -> Iterator[tuple[int, Picture, Role]]:
        """Yields (row, picture, role) in row order, without removed rows; reads them in blocks."""
        for block in row_blocks(np.flatnonzero(self.alive), _BLOCK_ROWS):
            for row, picture in zip(block.tolist(), self.pictures(block), strict=True):
                yield row, picture, "distractor" if self.membership.distractor[row] else "gallery"

    def labels(self, row: int) -> tuple[str, ...]:
        """Returns the labels of one row (IndexError)."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of a gallery of {self.rows} rows")
        codes = self.label_codes[self.label_offsets[row] : self.label_offsets[row + 1]]
        return tuple(self.label_names[code] for code in codes)

    @property
    def has_labels(self) -> bool:
        """True if any picture that is no distractor has a label."""
        return bool(np.diff(self.label_offsets)[self.membership.role("gallery")].any())

    def had_label(self, name: str) -> bool:
        """Returns whether a picture has a label, or a removed picture had it."""
        with self._reading():
            return name in self._catalog.codes("label")

    def landmark_details(self, label: str) -> LandmarkDetails | None:
        """Returns the details of a landmark, or None where the index has none."""
        return self.details_of([label]).get(label)

    def details_of(self, labels: Iterable[str]) -> dict[str, LandmarkDetails]:
        """Returns the details of those labels that have some, in the order of `labels`.

        Only these are read, so a page of `label_names` costs little in a large gallery.
        """
        with self._reading():
            return self._details.of(labels) if self.has_details else {}

    def all_details(self) -> list[LandmarkDetails]:
        """Returns the details of all landmarks, also of those without a picture, by label."""
        with self._reading():
            return self._details.all()

    @property
    def has_details(self) -> bool:
        """Whether the index has details of any landmark (GalleryWriter.set_landmarks)."""
        return self._state.entries.get("landmark", 0) > 0

    def file(self, picture: Picture) -> Path:
        """Returns the path of a picture's file, which may not exist any more."""
        return Path(picture.root) / picture.path

    def read(self, picture: Picture) -> bytes | str:
        """Returns the content of the file of a picture, or the reason why it cannot be read.

        An index from elsewhere may name any file. The content is returned only if it is the one
        that the index was built from.
        """
        from lmk.embed.data.images import read_bytes  # takes a while to import

        data = read_bytes(self.file(picture))
        if isinstance(data, str) or hashlib.sha256(data).hexdigest() == picture.sha256:
            return data
        return "has changed since the index was built"

    def skipped(self) -> list[tuple[str, str]]:
        """Returns (path, reason) of each skipped file, sorted by path."""
        with self._reading():
            return self._catalog.skipped()

    def setting(self, name: str) -> Any:
        """Returns the JSON value saved under `name` (GalleryWriter.set), or None."""
        with self._reading():
            return self._catalog.meta(f"setting:{name}")

    def settings(self) -> dict[str, Any]:
        """Returns all saved JSON values by name."""
        with self._reading():
            return self._catalog.metas("setting:")

    def array(self, name: str) -> NDArray[Any] | None:
        """Returns the array saved under `name` (GalleryWriter.put_array).

        The result is None if there is no such array, or if the rows have changed since.
        """
        with self._reading():
            header = self._catalog.array(name)
            if header is None or header["generation"] != self.generation:
                return None
            file = self._files[header["file"]]
            data = file.read(0, file.record.size)
            return np.frombuffer(data, header["dtype"]).reshape(header["shape"]).copy()

    def info(self) -> GalleryInfo:
        """Returns figures of the gallery."""
        counts = np.diff(self.label_offsets)
        of_gallery = self.membership.role("gallery")
        used = self.label_codes[np.repeat(of_gallery, counts)]
        return GalleryInfo(
            path=self.path,
            format=self._catalog.format,
            fingerprint=self.fingerprint,
            dim=self.dim,
            precision=self.precision,
            pictures=int(of_gallery.sum()),
            landmarks=len(np.unique(used)),
            distractors=int(self.membership.role("distractor").sum()),
            unlabelled=int((of_gallery & (counts == 0)).sum()),
            removed=self.removed,
            skipped=len(self.skipped()),
            segments=sum(path.startswith("segments/") for path in self._files),
            bytes_on_disk=bytes_below(self.path),
            created=self.created,
            updated=self._state.updated,
            generation=self.generation,
            landmark_details=self._state.entries.get("landmark", 0),
        )

    @cached_property
    def content(self) -> str:
        """A digest of the vectors and the removed rows."""
        keys = json.dumps([part.key for part in self.stored.parts])
        removed = hashlib.sha256(np.packbits(self.alive).tobytes()).hexdigest()
        return hashlib.sha256(f"{keys} {removed}".encode()).hexdigest()

    @cached_property
    def _roots(self) -> list[str]:
        return self._catalog.roots()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self.check_open()
        with entry_errors(self._catalog.damaged):
            yield

    def check_open(self) -> None:
        """Checks that the gallery is open (ValueError) and in its process (ForkedProcess)."""
        if not self.close.alive:
            raise ValueError(f"the gallery {self.path} is closed")
        self._catalog.check_process()

    def _checked(self, rows: ArrayLike) -> NDArray[np.int64]:
        self.check_open()
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ValueError(f"rows must be int [n], got {wanted.dtype} {wanted.shape}")
        wrong = (wanted < 0) | (wanted >= self.rows)
        if wrong.any():
            raise IndexError(f"row {wanted[wrong][0]} of a gallery of {self.rows} rows")
        return wanted.astype(np.int64)

    def _living(self, rows: ArrayLike) -> NDArray[np.int64]:
        wanted = self._checked(rows)
        removed = wanted[~self.alive[wanted]]
        if removed.size:
            raise IndexError(f"row {removed[0]} was removed")
        return wanted

    def _open_files(self, opened: list[StoredFile], *, verify: bool | None) -> None:
        """Opens all files that the catalog names, and closes those of the embedder."""
        embedder = []
        for record in self._catalog.files():
            file = StoredFile(self.path, record)
            opened.append(file)
            if record.path.startswith(f"{EMBEDDER}/"):
                embedder.append(file)
            else:
                self._files[record.path] = file
        check_files(self.path, opened, verify)
        for file in embedder:
            file.close()


def moved_on(folder: Path, state: State | None) -> bool:
    """Returns whether a gallery has changed since a state."""
    with closing(Catalog.read(folder)) as catalog:
        return catalog.state() != state


def _close(catalog: Catalog, files: list[StoredFile]) -> None:
    for file in files:
        file.close()
    catalog.close()


def class_sizes(gallery: Gallery) -> dict[str, int]:
    """Returns the number of gallery pictures of each landmark, without distractors."""
    rows, labels = gallery.membership.role("gallery"), np.diff(gallery.label_offsets)
    codes = gallery.label_codes[np.repeat(rows, labels)]
    counts = np.bincount(codes, minlength=len(gallery.label_names))
    return dict(zip(gallery.label_names, counts.tolist(), strict=True))
