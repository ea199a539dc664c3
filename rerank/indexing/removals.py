"""Pictures that a sync removes or keeps, and the question before it removes many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest import Manifest
from lmk.embed.data.unseen import hidden_by
from lmk.embed.errors import GalleryError
from lmk.embed.extract.extract import Extraction
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.labels import Role

MOST_REMOVED = 0.2  # share of the pictures of a role that may vanish without a question
_NAMED = 3  # landmarks named in a message


@dataclass(frozen=True)
class Kept:
    """Pictures that stay in an index although their files could not be looked at.

    Attributes:
        path: the folder or file that could not be looked at, below the folder that was read.
        reason: why.
        pictures: how many pictures of the index lie at or below it.
    """

    path: str
    reason: str
    pictures: int


@dataclass(frozen=True)
class Removals:
    """Pictures of one role that an index would lose.

    Attributes:
        role: of the pictures.
        pictures: how many of them would be removed.
        held: how many the index has.
        landmarks: those whose pictures would all be removed, sorted.
        replaced: all landmarks of the index, sorted, where not one of them would be left and
            fewer others, or none, would take their place.
    """

    role: Role
    pictures: int
    held: int
    landmarks: tuple[str, ...]
    replaced: tuple[str, ...] = ()

    @property
    def many(self) -> bool:
        """Whether a user should be asked: whole landmarks go, or more than a fifth of all."""
        return bool(self.vanishing) or self.pictures > MOST_REMOVED * self.held

    @property
    def vanishing(self) -> tuple[str, ...]:
        """The landmarks that no picture would have any more."""
        return self.replaced or self.landmarks

    def describe(self) -> str:
        """The loss in words: "8 of its 20 pictures, among them all of the landmark castle"."""
        noun = "picture" if self.role == "gallery" else "distractor"
        text = f"{self.pictures:,} of its {self.held:,} {noun}s"
        if not self.vanishing:
            return text
        more = len(self.vanishing) - _NAMED
        names = ", ".join(self.vanishing[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        plural = "landmarks" if len(self.vanishing) > 1 else "landmark"
        if self.replaced:
            return f"{text} and each of its {plural} {names}"
        return f"{text}, among them all of the {plural} {names}"


def removals(
    old: Gallery, role: Role, removed: NDArray[np.int64], *, present: Iterable[str] = ()
) -> Removals:
    """Counts what an index would lose.

    Args:
        old: the index.
        role: of the pictures.
        removed: rows of that role that would be removed for good.
        present: landmarks that will have pictures all the same.
    """
    members = old.membership
    alive = members.role(role)
    going = np.zeros(old.rows, np.bool_)
    going[removed] = True
    counts = np.diff(members.offsets)
    before = np.bincount(members.codes[np.repeat(alive, counts)], minlength=len(members.names))
    after = np.bincount(members.codes[np.repeat(alive & ~going, counts)], minlength=len(before))
    gone = {members.names[code] for code in np.flatnonzero((before > 0) & (after == 0))}
    landmarks = sorted(gone.difference(present)) if role == "gallery" else []
    return Removals(role, len(removed), int(alive.sum()), tuple(landmarks))


def require_few(path: Path, losses: Sequence[Removals]) -> None:
    """Refuses to remove whole landmarks, or more than a fifth of the pictures.

    Raises:
        GalleryError: names the pictures that would be removed, and the option that allows it.
    """
    many = [loss for loss in losses if loss.many]
    if many:
        raise GalleryError(
            f"would lose {' and '.join(loss.describe() for loss in many)}; nothing was changed",
            where=path,
            remedy="check that no drive is away and that the folder is the right one; --dry-run"
            " lists the changes, --allow-removals allows them",
        )


def require_seen(
    old: Gallery, role: Role, whole: Manifest, part: Manifest, found: Extraction
) -> None:
    """Refuses to build an index anew when it would lose much that could not be looked at.

    Pictures count that the index has from the same folder and that may be there still.

    Args:
        old: the index as it is.
        role: of the pictures.
        whole: all pictures that the index should hold.
        part: those of them that belong to this part of several; the whole otherwise.
        found: of `part`.

    Raises:
        GalleryError: whole landmarks would be lost, or more than a fifth of the pictures.
    """
    places, root = whole.unseen_places(), str(whole.root.resolve())
    have = {picture.row.path for picture in found.pictures}
    listed = {row.path for row in part.rows}
    lost, hidden = list[int](), list[tuple[str, str]]()
    for row, picture, of_role in old.entries():
        if of_role != role or picture.root != root or picture.path in have:
            continue
        if picture.path in listed:
            file = whole.root / picture.path
            why = hidden_by(file, whole.root)
            place = None if why is None else (picture.path, why)
        else:
            unseen = places.at(picture.path)
            place = None if unseen is None else (unseen.path, unseen.reason)
        if place is not None:
            lost.append(row)
            hidden.append(place)
    present = {label for picture in found.pictures for label in picture.row.labels}
    if part is not whole:
        others = (row.labels for row in whole.rows if row.path not in listed)
        present.update(label for labels in others for label in labels)
    loss = removals(old, role, np.array(lost, np.int64), present=present)
    if loss.many:
        first, *more = kept_below(hidden)
        rest = f" and {len(more):,} more places" if more else ""
        raise GalleryError(
            f"would lose {loss.describe()}, which could not be looked at ({first.path}: "
            f"{first.reason}{rest}); nothing was changed",
            where=old.path,
            remedy="make the pictures readable, or build the index without them: --allow-removals",
        )


def kept_below(places: Iterable[tuple[str, str]]) -> tuple[Kept, ...]:
    """Counts kept pictures by (path, reason) of what hides each, in order of first appearance."""
    counts = Counter(places)
    return tuple(Kept(path, reason, number) for (path, reason), number in counts.items())
