"""The background: the mean cosine of two pictures of different landmarks of a gallery.

Pictures with the same labels show one landmark. A picture without a label is a landmark of its
own. The mean follows from the sums of the vectors of all pictures and of each landmark, so it
takes one pass. When pictures are added or removed, only the sums of their landmarks are computed
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View

MOST_BACKGROUND = 0.9  # prevents a division by 0 for a gallery of copies
_BLOCK = 8192  # vectors in memory as float64


@dataclass(frozen=True, eq=False)
class LandmarkSums:
    """Sums of vectors from which the background is computed.

    Attributes:
        pictures: the number of pictures.
        total: float64 [dim], the sum of their vectors.
        squares: the sum over landmarks of the squared length of the sum of their vectors.
        pairs: the sum over landmarks of the squared number of their pictures.
    """

    pictures: int
    total: NDArray[np.float64]
    squares: float
    pairs: int

    @classmethod
    def none(cls, dim: int) -> LandmarkSums:
        """Returns the sums of no picture."""
        return cls(0, np.zeros(dim), 0.0, 0)

    def mean_cosine(self, most: float = MOST_BACKGROUND) -> float:
        """Returns the background, from 0 to `most`; 0 with fewer than two landmarks."""
        unknown_landmark = self.pictures**2 - self.pairs
        if unknown_landmark == 0:
            return 0.0
        cosines = float(self.total @ self.total) - self.squares
        return float(np.clip(cosines / unknown_landmark, 0.0, most))

    def updated(self, *, before: View, after: View) -> LandmarkSums:
        """Returns the sums after a change.

        Args:
            before: the pictures of these sums.
            after: the pictures after the change, over the vectors of all rows. The labels of
                pictures that stay do not change.
        """
        stored = after.stored
        mask = np.zeros(stored.rows, np.bool_)
        mask[: len(before.mask)] = before.mask
        landmark = _landmarks(stored.rows, before, after)
        touched = np.isin(landmark, landmark[mask != after.mask])
        old = _sums(stored, landmark, np.flatnonzero(mask & touched))
        new = _sums(stored, landmark, np.flatnonzero(after.mask & touched))
        return LandmarkSums(
            self.pictures - old.pictures + new.pictures,
            self.total - old.total + new.total,
            self.squares - old.squares + new.squares,
            self.pairs - old.pairs + new.pairs,
        )

    def as_json(self) -> dict[str, Any]:
        """Returns the sums as JSON values."""
        return {**vars(self), "total": self.total.tolist()}

    @classmethod
    def of_json(cls, value: dict[str, Any], dim: int) -> LandmarkSums | None:
        """Returns the sums that `as_json` gave, or None for any other value."""
        try:
            total = np.array(value["total"], np.float64)
            pictures, pairs = index(value["pictures"]), index(value["pairs"])
            squares = float(value["squares"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        whole = total.shape == (dim,) and bool(np.isfinite([*total, squares]).all())
        return cls(pictures, total, squares, pairs) if whole and min(pictures, pairs) >= 0 else None


def landmark_sums(gallery: View) -> LandmarkSums:
    """Returns the sums of all pictures of a view."""
    nothing = replace(gallery, mask=np.zeros_like(gallery.mask))
    return LandmarkSums.none(gallery.dim).updated(before=nothing, after=gallery)


def _landmarks(rows: int, *sides: View) -> NDArray[np.int64]:
    """Returns a number for each row: one for each set of labels, one for each row without any."""
    landmark = -1 - np.arange(rows, dtype=np.int64)
    numbers: dict[object, int] = {}  # of names, and of sets of their numbers
    for side in sides:
        if side.labels is None:
            continue
        offsets = side.labels.offsets
        codes = [numbers.setdefault(name, len(numbers)) for name in side.labels.names]
        labels = np.array(codes, np.int64)[side.labels.codes]
        counts = np.where(side.mask, np.diff(offsets), 0)
        single = np.flatnonzero(counts == 1)
        landmark[single] = labels[offsets[single]]
        for row in np.flatnonzero(counts > 1):
            several = tuple(sorted(labels[offsets[row] : offsets[row + 1]].tolist()))
            landmark[row] = numbers.setdefault(several, len(numbers))
    return landmark


def _sums(stored: Vectors, landmark: NDArray[np.int64], rows: NDArray[np.int64]) -> LandmarkSums:
    """Returns the sums of some rows, landmark by landmark and a block at a time."""
    order = rows[np.argsort(landmark[rows], kind="stable")]
    total, squares = np.zeros(stored.dim), 0.0
    last, last_landmark = np.zeros(stored.dim), None  # a landmark may continue in the next block
    for start in range(0, len(order), _BLOCK):
        chosen = order[start : start + _BLOCK]
        vectors, of = stored.read(chosen).astype(np.float64), landmark[chosen]
        begins = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]]))
        sums = np.add.reduceat(vectors, begins, axis=0)
        total += sums.sum(axis=0)
        if of[0] == last_landmark:
            sums[0] += last
        else:
            squares += float(last @ last)
        squares += float((sums[:-1] ** 2).sum())
        last, last_landmark = sums[-1], of[-1]
    sizes = np.unique(landmark[rows], return_counts=True)[1]
    return LandmarkSums(len(rows), total, squares + float(last @ last), int((sizes**2).sum()))
