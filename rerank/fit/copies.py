"""Copies of one photo by their vectors: recompressed, cropped or resized files, frames of a burst.

A gallery that answers its own pictures must leave out the picture and its copies, because a photo
that a user takes tomorrow has no copy in the gallery.

Two pictures count as copies when their rescaled cosine is at least ALIKE. Rescaled, two pictures of
different landmarks have 0 on average (RescaleStep), and the same limit serves all networks, with
and without whitening: docs/answers.md has the figures. Photos that are not copies are seldom as
alike, and leaving out a few of them moves no threshold.

The files of the pictures may be gone, so only vectors are compared. eval/check/same_photo.py
compares the files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW, Neighbours

ALIKE = 0.75  # chosen by leave-one-out on 1,099 photos (docs/answers.md)
MOST_COPIES = 50  # neighbours that are searched for the copies of a photo


@dataclass(frozen=True)
class CopyRule:
    """The rule by which pictures count as copies of one photo.

    Attributes:
        cosine: the smallest cosine of two copies.
    """

    cosine: float

    @classmethod
    def for_background(cls, background: float) -> CopyRule:
        """Returns the rule for vectors of one embedder.

        Args:
            background: the mean cosine of two pictures of different landmarks.
        """
        return cls(1 - (1 - ALIKE) * (1 - background))

    def among(self, neighbours: Neighbours) -> list[NDArray[np.int64]]:
        """Returns the neighbours of each query that are copies of it: q arrays of rows, int64.

        Args:
            neighbours: the neighbours of the queries by plain cosine.
        """
        copy = (neighbours.rows != NO_ROW) & (neighbours.scores >= self.cosine)
        return [rows[mask] for rows, mask in zip(neighbours.rows, copy, strict=True)]


def photo_numbers(rows: NDArray[np.int64], copies: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Returns the number of the photo that each row shows; copies of copies show the same one.

    Args:
        rows: int64 [n], different rows in any order.
        copies: for each row the rows that are copies of it (CopyRule.among). Rows that are not in
            `rows` do not count.

    Returns:
        int64 [n], numbers from 0.
    """
    from scipy.sparse import coo_array  # takes a tenth of a second to import
    from scipy.sparse.csgraph import connected_components

    there = [some[np.isin(some, rows)] for some in copies]
    order = np.argsort(rows)
    one = np.repeat(np.arange(len(rows)), [len(some) for some in there])
    other = order[np.searchsorted(rows, np.concatenate([rows[:0], *there]), sorter=order)]
    pairs = coo_array((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows)))
    return np.asarray(connected_components(pairs, directed=False)[1], np.int64)
