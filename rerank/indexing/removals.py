"""Losses of an index: counts of removed pictures, and errors if there are too many."""

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

MOST_REMOVED = 0.2  # fraction of a role's pictures that may be removed without confirmation
_NAMED = 3  # number of landmarks that a message names


@dataclass(frozen=True)
class UnseenPictures:
    """Pictures that stay in an index because their files could not be read.

    Attributes:
        path: the unreadable folder or file, relative to the folder of the pictures.
        reason: why `path` is unreadable.
        pictures: number of pictures of the index at or below `path`.
    """

    path: str
    reason: str
    pictures: int


@dataclass(frozen=True)
class Removals:
    """Pictures of one role that an index would lose.

    Attributes:
        role: the role of the pictures.
        pictures: number of pictures that would be removed.
        held: number of pictures of the role in the index.
        landmarks: landmarks, sorted, whose pictures would all be removed.
        replaced: all landmarks of the index, sorted, if fewer other landmarks would replace all
            of them; else empty.
    """

    role: Role
    pictures: int
    held: int
    landmarks: tuple[str, ...]
    replaced: tuple[str, ...] = ()

    @property
    def many(self) -> bool:
        """Whether the user must confirm, as whole landmarks or more than a fifth would be lost."""
        return bool(self.vanishing) or self.pictures > MOST_REMOVED * self.held

    @property
    def vanishing(self) -> tuple[str, ...]:
        """The landmarks that would have no picture left."""
        return self.replaced or self.landmarks

    def describe(self) -> str:
        """Returns text such as "8 of its 20 pictures, among them all of the landmark castle"."""
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
    """Returns the pictures and landmarks that an index would lose.

    Args:
        old: the index.
        role: the role of the pictures.
        removed: int64 [n], the rows of that role that would be removed.
        present: landmarks that will have pictures in any case.
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
    """Raises an error if an index would lose whole landmarks or more than a fifth of a role.

    Raises:
        GalleryError: the message names the losses and the option that allows these losses.
    """
    many = [loss for loss in losses if loss.many]
    if many:
        raise GalleryError(
            f"would lose {' and '.join(loss.describe() for loss in many)}; nothing was changed",
            where=path,
            remedy="check that all drives are mounted and the folder is right; --dry-run"
            " lists the changes, --allow-removals allows them",
        )


def require_seen(
    old: Gallery, role: Role, whole: Manifest, part: Manifest, extraction: Extraction
) -> None:
    """Raises an error if a new build would lose many pictures because of unreadable files.

    The function counts only pictures from the same folder whose files may still exist.

    Args:
        old: the existing index.
        role: the role of the pictures.
        whole: all pictures of the new index.
        part: the pictures of this shard, or the whole.
        extraction: the result of reading `part`.

    Raises:
        GalleryError: the index would lose whole landmarks or more than a fifth of the pictures.
    """
    places, root = whole.unseen_places(), str(whole.root.resolve())
    have = {picture.row.path for picture in extraction.pictures}
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
    present = present_landmarks(whole, part, extraction)
    loss = removals(old, role, np.array(lost, np.int64), present=present)
    if loss.many:
        first, *more = unseen_pictures(hidden)
        rest = f" and {len(more):,} more places" if more else ""
        raise GalleryError(
            f"would lose {loss.describe()}, which could not be read ({first.path}: "
            f"{first.reason}{rest}); nothing was changed",
            where=old.path,
            remedy="make the pictures readable, or build the index without them: --allow-removals",
        )


def present_landmarks(whole: Manifest, part: Manifest, extraction: Extraction) -> set[str]:
    """Returns the landmarks of all readable pictures, and of all pictures of other shards.

    Args:
        whole: all pictures.
        part: the pictures of this shard, or the whole.
        extraction: the result of reading `part`.
    """
    present = {label for picture in extraction.pictures for label in picture.row.labels}
    if part is not whole:
        ours = {row.id for row in part.rows}
        present.update(label for row in whole.rows if row.id not in ours for label in row.labels)
    return present


def unseen_pictures(places: Iterable[tuple[str, str]]) -> tuple[UnseenPictures, ...]:
    """Returns the number of pictures for each distinct (path, reason), in order of appearance."""
    counts = Counter(places)
    return tuple(UnseenPictures(path, reason, number) for (path, reason), number in counts.items())
