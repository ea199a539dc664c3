"""Uncommitted: a gallery with the uncommitted changes of its writer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmk.embed.errors import GalleryError
from lmk.embed.shell_words import shell_word
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.landmarks import DetailsTable
from lmk.index.catalog.pictures import PictureTable
from lmk.index.catalog.records import Picture
from lmk.index.gallery.deduplicate import shared_content
from lmk.index.gallery.embedder_paths import embedder_files, embedder_folder
from lmk.index.gallery.transaction import Transaction
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.labels import Membership, Role
from lmk.index.vectors.view import View


class Uncommitted:
    """Reads a gallery inside the transaction of its writer (GalleryWriter.uncommitted).

    Attributes:
        path: the gallery folder.
        rows: number of row numbers used so far.
        fingerprint: fingerprint of the embedder of the gallery.

    Args:
        transaction: the transaction of the writer.
        derived: files that a search derives from the vectors.
    """

    def __init__(self, transaction: Transaction, derived: DerivedFiles) -> None:
        self.path = transaction.folder
        self.rows = transaction.state.rows
        self.fingerprint = transaction.state.fingerprint
        self._transaction = transaction
        self._catalog = transaction.catalog
        self._pictures = PictureTable(transaction.catalog)
        self._derived = derived

    @property
    def embedder_dir(self) -> Path:
        """Folder of the embedder."""
        return embedder_folder(self.path, self.fingerprint, self._catalog.files())

    def embedder_checksums(self) -> dict[Path, str]:
        """Returns the required SHA-256 of each file of the embedder."""
        files = embedder_files(self.fingerprint, self._catalog.files())
        return {self.path / record.path: record.sha256 for record in files}

    def arrays(self) -> dict[str, Path]:
        """Returns the file of each array, by name."""
        headers = self._catalog.arrays()
        return {name: self.path / header["file"] for name, header in headers.items()}

    def membership(self) -> Membership:
        """Returns role and labels of each row (GalleryDamaged)."""
        return self._catalog.membership(self._transaction.state)

    def view(self, role: Role = "gallery") -> View:
        """Returns the view for a search of a role (GalleryDamaged)."""
        membership = self.membership()
        stored, mask = self._transaction.stored(), membership.role(role)
        return View(stored, mask, self.fingerprint, membership, self._derived)

    def find(self, ids: Iterable[str]) -> dict[str, int]:
        """Returns the row of each id that the gallery has."""
        return {id_: row for id_, (row, _) in self._pictures.lookup(ids).items()}

    def require(self, ids: Iterable[str]) -> dict[str, int]:
        """Returns the row of each id (GalleryError for an id that the gallery does not have)."""
        wanted = list(dict.fromkeys(ids))
        rows = self.find(wanted)
        for id_ in wanted:
            if id_ not in rows:
                what = "no picture of the gallery has this id"
                listing = f"`lmk index list {shell_word(self.path)} --pictures`"
                raise GalleryError(what, where=id_, remedy=f"{listing} shows the ids there are")
        return rows

    def removed_ids(self, ids: Iterable[str]) -> set[str]:
        """Returns the ids whose picture was removed since the last `compact`."""
        return self._catalog.removed_ids(ids)

    def shared(self) -> NDArray[np.int64]:
        """Returns the ascending rows of distractors whose content a gallery picture has too."""
        return shared_content(self._catalog, self.membership())

    def details(self) -> list[LandmarkDetails]:
        """Returns the details of all landmarks, by label."""
        return DetailsTable(self._catalog).all()

    def pictures(self, rows: ArrayLike) -> list[Picture]:
        """Returns the pictures of rows that were not removed (GalleryDamaged).

        The vectors are not read, so missing or damaged vectors do not matter.
        """
        return self._pictures.pictures(np.asarray(rows, np.int64))
