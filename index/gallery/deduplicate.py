"""Deduplication: selects the pictures that are added to a gallery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import EmbedderMismatch, GalleryError
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.layout import stays_inside
from lmk.index.catalog.pictures import PictureTable
from lmk.index.catalog.records import Picture, State
from lmk.index.vectors.files import runs
from lmk.index.vectors.labels import ROLES, Membership, Role


@dataclass(frozen=True)
class LabelDifference:
    """Two pictures with the same content and different labels.

    Attributes:
        id, labels: the new picture.
        other, other_labels: the picture that is in the gallery.
    """

    id: str
    labels: tuple[str, ...]
    other: str
    other_labels: tuple[str, ...]


@dataclass(frozen=True)
class _Copy:
    """A picture with the content of another; `position` if it is not in the gallery yet."""

    id: str
    labels: tuple[str, ...]
    position: int | None = None


def deduplicate(
    catalog: Catalog,
    pictures: Sequence[Picture],
    role: Role,
    *,
    duplicates: bool,
    replace_labels: bool = True,
) -> Deduplication:
    """Selects the pictures to add to a gallery.

    A picture with the id and content of a picture in the gallery replaces that picture if its
    labels differ. A picture with the content of a picture with another id is left out, unless it
    has a label that none of these pictures has. No label is lost, whatever the order of the copies.
    A copy with labels replaces a copy without labels.

    Args:
        catalog: the catalog of the gallery.
        pictures: the new pictures, with different ids.
        role: the role of the pictures. Labels of distractors are ignored.
        duplicates: also add pictures with the content of another picture of this role.
        replace_labels: replace the labels of a picture in the gallery with the same id and content.
            If False, labels replace only an absence of labels.

    Raises:
        GalleryError: the gallery has an id of the pictures with another content.
    """
    stored = PictureTable(catalog).lookup(picture.id for picture in pictures)
    for picture in pictures:
        if stored.get(picture.id, (0, picture.sha256))[1] != picture.sha256:
            raise GalleryError(
                "another picture has this id",
                where=picture.id,
                remedy="give it another id, or let `lmk index sync` replace the old one",
            )
    rows = [] if role == "distractor" else [row for row, _ in stored.values()]
    labels = dict(zip(rows, PictureTable(catalog).labels(rows), strict=True))
    selection = Deduplication(catalog, role, duplicates)
    for position, picture in enumerate(pictures):
        if picture.id in stored:
            old_labels = labels.get(stored[picture.id][0], ())
            selection.add_stored(position, picture, old_labels, replace_labels)
        else:
            selection.add_unknown(position, picture)
    return selection


class Deduplication:
    """Selection of the pictures to add to a gallery, from the new pictures in their order.

    Attributes:
        new: positions of the pictures to add.
        unchanged: number of pictures that are in the gallery with the same id and content.
        duplicates: (id, id of a picture with the same content) of the pictures left out.
        relabelled: pictures that replace a picture in the gallery with the same content.
        conflicts: pictures whose content the gallery also has with other labels.
    """

    def __init__(self, catalog: Catalog, role: Role, allow_duplicates: bool) -> None:
        self.new: set[int] = set()
        self.unchanged = 0
        self.duplicates: list[tuple[str, str]] = []
        self.relabelled: list[LabelDifference] = []
        self.conflicts: list[LabelDifference] = []
        self._pictures, self._role = PictureTable(catalog), role
        self._allow_duplicates = allow_duplicates
        self._selected: dict[str, list[_Copy]] = {}  # by content
        self._replaced: dict[str, str] = {}  # the id of the replacement, by the id in the gallery

    def add_stored(
        self, position: int, picture: Picture, old: tuple[str, ...], replace_labels: bool
    ) -> None:
        """Decides on a picture whose id and content are in the gallery, with the labels `old`."""
        if picture.id in self._replaced:
            self.duplicates.append((picture.id, self._replaced[picture.id]))
            return
        difference = LabelDifference(picture.id, picture.labels, picture.id, old)
        differ = self._role == "gallery" and picture.labels and set(picture.labels) != set(old)
        if differ and (replace_labels or not old):
            self.relabelled.append(difference)
            self._replaced[picture.id] = picture.id
            self._select(position, picture)
            return
        if differ:
            self.conflicts.append(difference)
        self.unchanged += 1

    def add_unknown(self, position: int, picture: Picture) -> None:
        """Decides on a picture whose id is not in the gallery."""
        copies = self._copies(picture.sha256)
        if not self._allow_duplicates:
            labels = set(picture.labels) if self._role == "gallery" else set()
            same = next((copy for copy in copies if labels <= set(copy.labels)), None)
            if same is not None:
                self.duplicates.append((picture.id, same.id))
                return
        if self._role == "gallery" and picture.labels:
            self._compare(picture, copies)
        self._select(position, picture)

    def _select(self, position: int, picture: Picture) -> None:
        self.new.add(position)
        copy = _Copy(picture.id, picture.labels, position)
        self._selected.setdefault(picture.sha256, []).append(copy)

    def _compare(self, picture: Picture, copies: Sequence[_Copy]) -> None:
        """Records a conflict of labels, and replaces copies without labels."""
        for copy in copies:
            if copy.labels and not set(copy.labels) & set(picture.labels):
                difference = LabelDifference(picture.id, picture.labels, copy.id, copy.labels)
                self.conflicts.append(difference)
                break
        for copy in copies:
            if copy.labels or self._allow_duplicates:
                continue
            if copy.position is None:
                self._replaced[copy.id] = picture.id
                self.relabelled.append(LabelDifference(picture.id, picture.labels, copy.id, ()))
            else:
                self.new.remove(copy.position)
                self._selected[picture.sha256].remove(copy)
                self.duplicates.append((copy.id, picture.id))

    def _copies(self, content: str) -> list[_Copy]:
        """Returns the pictures with a content, in the gallery and among the selected ones."""
        stored = self._pictures.same_content(content, self._role)
        labels = self._pictures.labels([row for row, _ in stored]) if stored else []
        pairs = zip(stored, labels, strict=True)
        copies = [_Copy(id_, own) for (_, id_), own in pairs if id_ not in self._replaced]
        return copies + self._selected.get(content, [])


def shared_content(catalog: Catalog, membership: Membership) -> NDArray[np.int64]:
    """Returns the ascending rows of distractors whose content a gallery picture has too.

    The catalog is queried once for the contents of each run of distractors.
    """
    distractors = np.flatnonzero(membership.role("distractor"))
    query = (  # distinct, as many pictures may have the same content
        "SELECT other.row, other.sha256 FROM"
        " (SELECT DISTINCT substr(sha256, 1, 16) AS start FROM picture WHERE row BETWEEN ? AND ?)"
        " JOIN picture AS other INDEXED BY picture_content"
        " ON substr(other.sha256, 1, 16) = start"
    )
    gallery, shared = membership.role("gallery"), set()
    for start, stop in runs(distractors):
        first, last = int(distractors[start]), int(distractors[stop - 1])
        copies = catalog.all(query, (first, last))
        contents = {content for row, content in copies if gallery[row]}
        shared |= {row for row, content in copies if content in contents and not gallery[row]}
    return np.array(sorted(shared), np.int64)


def check_vectors(state: State, dim: int, fingerprint: str) -> None:
    """Checks that vectors are of the gallery's embedder and dim (EmbedderMismatch)."""
    what = None
    if fingerprint != state.fingerprint:
        what = f"of embedder {fingerprint[:16]} for a gallery of embedder {state.fingerprint[:16]}"
    elif dim != state.dim:
        what = f"of {dim} components for a gallery of {state.dim}"
    if what is not None:
        remedy = "use the gallery's own embedder, or rebuild it with `lmk build-index`"
        raise EmbedderMismatch(f"vectors {what}", remedy=remedy)


def check_pictures(pictures: Sequence[Picture], role: Role) -> None:
    """Checks role, roots and paths of new pictures (ValueError)."""
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    for picture in pictures:
        if not os.path.isabs(picture.root):  # noqa: PTH117
            raise ValueError(f"the root of picture {picture.id} is not absolute: {picture.root}")
        if not stays_inside(picture.path.replace("\0", "")):  # NUL is refused when it is written
            raise ValueError(f"the path of picture {picture.id} leaves its root: {picture.path}")
