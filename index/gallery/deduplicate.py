"""Which of the pictures given to a gallery are new to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        id, labels: of the picture that was given.
        other, other_labels: of the picture that the gallery holds.
    """

    id: str
    labels: tuple[str, ...]
    other: str
    other_labels: tuple[str, ...]


@dataclass(frozen=True)
class Admission:
    """The decisions on pictures given to a gallery.

    Attributes:
        new: positions of the pictures to add.
        unchanged: how many the gallery has already, by id and content.
        duplicates: (id given, id that has this content) of the pictures left out.
        relabelled: pictures that are added in the place of one that the gallery holds, because
            only their labels are new.
        conflicts: pictures whose content the gallery also holds under another label.
    """

    new: list[int]
    unchanged: int
    duplicates: list[tuple[str, str]]
    relabelled: list[LabelDifference]
    conflicts: list[LabelDifference]


@dataclass(frozen=True)
class _Twin:
    """A picture with the content of one that is given; `position` where it was given before it."""

    id: str
    labels: tuple[str, ...]
    position: int | None = None


def admit(
    catalog: Catalog,
    pictures: Sequence[Picture],
    role: Role,
    *,
    duplicates: bool,
    replace_labels: bool = True,
) -> Admission:
    """Decides which pictures are added to a gallery.

    A picture that the gallery holds under the same id and content is added again, in the place of
    the old one, when it brings other labels. A picture whose content the gallery holds under
    another id is left out, unless it brings a label that none of these has: no label is lost,
    in whatever order the copies come. A copy without any label gives way to one that has some.

    Args:
        catalog: of the gallery.
        pictures: given, with different ids.
        role: of the pictures. The labels of distractors do not matter.
        duplicates: also add pictures whose content another picture of the role has.
        replace_labels: whether the labels of a picture given replace other labels that the gallery
            holds under the same id; without it they only replace none.

    Raises:
        GalleryError: for an id that the gallery has with another content.
    """
    known = PictureTable(catalog).lookup(picture.id for picture in pictures)
    for picture in pictures:
        if known.get(picture.id, (0, picture.sha256))[1] != picture.sha256:
            raise GalleryError(
                "another picture has this id",
                where=picture.id,
                remedy="give it another id, or let `lmk index sync` replace the old one",
            )
    held = [] if role == "distractor" else [row for row, _ in known.values()]
    labels = dict(zip(held, PictureTable(catalog).labels(held), strict=True))
    found = Admission([], 0, [], [], [])
    unchanged, given = 0, _Given(catalog, role, duplicates)
    for i, picture in enumerate(pictures):
        row = known.get(picture.id, (-1, ""))[0]
        if row < 0:
            given.admit(i, picture, found)
        elif picture.id in given.replaced:
            found.duplicates.append((picture.id, given.replaced[picture.id]))
        else:
            old = labels.get(row, ())
            news = LabelDifference(picture.id, picture.labels, picture.id, old)
            differ = role == "gallery" and picture.labels and set(picture.labels) != set(old)
            if differ and (replace_labels or not old):
                found.relabelled.append(news)
                given.take(i, picture, found)
                continue
            if differ:
                found.conflicts.append(news)
            unchanged += 1
    new = sorted(set(found.new) - given.dropped)
    return replace(found, new=new, unchanged=unchanged)


class _Given:
    """Decides on pictures with new ids, in their order."""

    def __init__(self, catalog: Catalog, role: Role, duplicates: bool) -> None:
        self._pictures, self._role, self._duplicates = PictureTable(catalog), role, duplicates
        self._first: dict[str, list[_Twin]] = {}
        self.replaced: dict[str, str] = {}  # stored ids, and the id that takes the place of each
        self.dropped: set[int] = set()  # positions of admitted pictures that gave way to another

    def admit(self, i: int, picture: Picture, found: Admission) -> None:
        """Decides on the picture at position i."""
        twins = self._twins(picture.sha256)
        if not self._duplicates:
            own = set(picture.labels) if self._role == "gallery" else set()
            same = next((twin for twin in twins if own <= set(twin.labels)), None)
            if same is not None:
                found.duplicates.append((picture.id, same.id))
                return
        if self._role == "gallery" and picture.labels:
            self._compare(picture, twins, found)
        self._add(i, picture, found)

    def take(self, i: int, picture: Picture, found: Admission) -> None:
        """Adds the picture at position i in the place of the one that the gallery holds."""
        self.replaced[picture.id] = picture.id
        self._add(i, picture, found)

    def _add(self, i: int, picture: Picture, found: Admission) -> None:
        found.new.append(i)
        self._first.setdefault(picture.sha256, []).append(_Twin(picture.id, picture.labels, i))

    def _compare(self, picture: Picture, twins: Sequence[_Twin], found: Admission) -> None:
        for twin in twins:
            if twin.labels and not set(twin.labels) & set(picture.labels):
                found.conflicts.append(
                    LabelDifference(picture.id, picture.labels, twin.id, twin.labels)
                )
                break
        for twin in twins:
            if twin.labels or self._duplicates:
                continue
            if twin.position is None:
                self.replaced[twin.id] = picture.id
                found.relabelled.append(LabelDifference(picture.id, picture.labels, twin.id, ()))
            else:
                self.dropped.add(twin.position)
                self._first[picture.sha256].remove(twin)
                found.duplicates.append((twin.id, picture.id))

    def _twins(self, content: str) -> list[_Twin]:
        held = self._pictures.same_content(content, self._role)
        labels = self._pictures.labels([row for row, _ in held]) if held else []
        stored = [
            _Twin(id_, own)
            for (_, id_), own in zip(held, labels, strict=True)
            if id_ not in self.replaced
        ]
        return stored + self._first.get(content, [])


def shared_content(catalog: Catalog, membership: Membership) -> NDArray[np.int64]:
    """Returns the rows of distractors whose content a gallery picture has too, ascending.

    It costs a look into the catalog for each content of a distractor.
    """
    distractors = np.flatnonzero(membership.role("distractor"))
    query = (  # each content once: many pictures may have the same
        "SELECT other.row, other.sha256 FROM"
        " (SELECT DISTINCT substr(sha256, 1, 16) AS start FROM picture WHERE row BETWEEN ? AND ?)"
        " JOIN picture AS other INDEXED BY picture_content"
        " ON substr(other.sha256, 1, 16) = start"
    )
    gallery, shared = membership.role("gallery"), set()
    for start, stop in runs(distractors):
        first, last = int(distractors[start]), int(distractors[stop - 1])
        found = catalog.all(query, (first, last))
        contents = {content for row, content in found if gallery[row]}
        shared |= {row for row, content in found if content in contents and not gallery[row]}
    return np.array(sorted(shared), np.int64)


def check_vectors(state: State, dim: int, fingerprint: str) -> None:
    """Refuses vectors of another embedder or another dim (EmbedderMismatch)."""
    what = None
    if fingerprint != state.fingerprint:
        what = f"of embedder {fingerprint[:16]} for a gallery of embedder {state.fingerprint[:16]}"
    elif dim != state.dim:
        what = f"of {dim} components for a gallery of {state.dim}"
    if what is not None:
        remedy = "use the gallery's own embedder, or rebuild it with `lmk build-index`"
        raise EmbedderMismatch(f"vectors {what}", remedy=remedy)


def check_pictures(pictures: Sequence[Picture], role: Role) -> None:
    """Refuses what no gallery can hold (ValueError)."""
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    for picture in pictures:
        if not os.path.isabs(picture.root):  # noqa: PTH117
            raise ValueError(f"the root of picture {picture.id} is not absolute: {picture.root}")
        if not stays_inside(picture.path.replace("\0", "")):  # NUL is refused when it is written
            raise ValueError(f"the path of picture {picture.id} leaves its root: {picture.path}")
