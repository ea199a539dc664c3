"""Stores the details of landmarks that a table gives in an index."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from lmk.embed.errors import UsageError
from lmk.embed.tables.label_forms import similar_pairs, similar_text
from lmk.embed.tables.label_text import plain_name
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.embed.tables.landmark_table import LandmarkTable
from lmk.index.gallery.writer import GalleryWriter


@dataclass(frozen=True)
class DetailsReport:
    """Result of storing the details of landmarks.

    Attributes:
        landmarks: number of landmarks of the index.
        described: number of those that have details now.
        unknown: landmarks of the table that the index does not have, in the order of the table;
            their details were left out.
    """

    landmarks: int
    described: int
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class MatchedDetails:
    """The details of a table, matched with landmarks.

    Attributes:
        details: one for each landmark that the table has a row for.
        unknown: landmarks of the table that are none of the given ones, in the order of the table.
    """

    details: tuple[LandmarkDetails, ...]
    unknown: tuple[str, ...]


def match_details(table: LandmarkTable, labels: Collection[str], *, where: str) -> MatchedDetails:
    """Returns the details of those landmarks of a table that are among the labels.

    Args:
        table: the details.
        labels: the landmarks of an index, or of the pictures to build it from.
        where: names these landmarks, such as "the landmarks of gallery.lmk".

    Raises:
        UsageError: no landmark of the table is among the labels.
    """
    label_of = {plain_name(label): label for label in labels}
    details = tuple(
        replace(one, landmark_id=label_of[one.landmark_id])
        for one in table.details
        if one.landmark_id in label_of
    )
    unknown = tuple(one.landmark_id for one in table.details if one.landmark_id not in label_of)
    if not details:
        example = f", such as {min(labels)!r}" if labels else ", of which there are none"
        what = f"none of its landmarks, such as {unknown[0]!r}, is among {where}{example}"
        alike = similar_text(similar_pairs(unknown, labels), "landmark")
        remedy = alike or "write the landmarks in the column landmark_id as `lmk index list` does"
        raise UsageError(what, where=table.path, remedy=remedy)
    return MatchedDetails(details, unknown)


def store_landmarks(writer: GalleryWriter, table: LandmarkTable | None) -> DetailsReport:
    """Replaces the details of all landmarks of an index; the caller commits.

    Args:
        writer: the writer of the index.
        table: the details; None removes all details.

    Raises:
        UsageError: no landmark of the table is in the index.
    """
    labels = writer.uncommitted.membership().names
    matched = MatchedDetails((), ())
    if table is not None:
        matched = match_details(table, labels, where=f"the landmarks of {writer.path}")
    writer.set_landmarks(matched.details)
    return DetailsReport(len(labels), len(matched.details), matched.unknown)


def set_landmarks(path: Path, table: LandmarkTable | None, *, wait: float = 0.0) -> DetailsReport:
    """Does the same as `store_landmarks`, in a transaction of its own.

    Args:
        path: the index.
        table: the details; None removes all details.
        wait: seconds to wait for another writer.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        UsageError: no landmark of the table is in the index; nothing is changed.
    """
    with GalleryWriter(path, wait=wait) as writer:
        report = store_landmarks(writer, table)
        writer.commit()
    return report
