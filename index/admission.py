"""Which of the pictures given to a gallery are new to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import EmbedderMismatch, GalleryError
from lmk.index.catalog import Catalog, Picture, State
from lmk.index.labels import ROLES, Membership, Role
from lmk.index.segments import runs


@dataclass(frozen=True)
class Admission:
    """What becomes of pictures given to a gallery.

    Attributes:
        new: positions of those to add.
        unchanged: how many the gallery has already, by id and content.
        duplicates: (id given, id that has this content) of those left out.
    """

    new: list[int]
    unchanged: int
    duplicates: list[tuple[str, str]]


def admit(
    catalog: Catalog, pictures: Sequence[Picture], role: Role, *, duplicates: bool
) -> Admission:
    """Says which pictures are new; GalleryError for an id that has another content."""
    known = catalog.known(picture.id for picture in pictures)
    for picture in pictures:
        if known.get(picture.id, (0, picture.sha256))[1] != picture.sha256:
            raise GalleryError(
                "another picture has this id",
                where=picture.id,
                remedy="give it another id, or let `lmk index sync` replace the old one",
            )
    new = [i for i, picture in enumerate(pictures) if picture.id not in known]
    unchanged, left_out = len(pictures) - len(new), []
    if not duplicates:
        given, new = new, []
        first: dict[str, str] = {}
        for i in given:
            picture = pictures[i]
            held = catalog.same_content(picture.sha256, role)
            twin = held[0][1] if held else first.get(picture.sha256)
            if twin is None:
                first[picture.sha256] = picture.id
                new.append(i)
            else:
                left_out.append((picture.id, twin))
    return Admission(new, unchanged, left_out)


def shared_content(catalog: Catalog, membership: Membership) -> NDArray[np.int64]:
    """Returns the rows of distractors whose content a gallery picture has too, ascending.

    It costs a look into the catalog for each distractor.
    """
    distractors = np.flatnonzero(membership.role("distractor"))
    query = (
        "SELECT one.row, one.sha256, other.row, other.sha256 FROM picture AS one"
        " JOIN picture AS other INDEXED BY picture_content"
        " ON substr(other.sha256, 1, 16) = substr(one.sha256, 1, 16) AND other.row != one.row"
        " WHERE one.row BETWEEN ? AND ?"
    )
    gallery, shared = membership.role("gallery"), set()
    for start, stop in runs(distractors):
        first, last = int(distractors[start]), int(distractors[stop - 1])
        for row, content, other, others in catalog.all(query, (first, last)):
            if content == others and membership.distractor[row] and gallery[other]:
                shared.add(row)
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
