"""Augmentation of the short list: gallery pictures are compared together with their nearest.

The same vectors as expansion.augment makes, but only of the pictures that a search found, when it
found them. A gallery then keeps the row numbers of each picture's nearest instead of a second set
of vectors; the search itself stays as it is. And a picture can be left out of all of it, which
leave-one-out needs: augmented vectors hold the very pictures that are asked, and would flatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.index.search import Searcher
from lmk.index.vectors import Vectors
from lmk.index.view import View
from lmk.rerank.expansion import augmentation_weights, itself_first
from lmk.rerank.ranking import ranked

_BLOCK = 1024  # rows searched at a time


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """The nearest pictures of each gallery picture.

    Attributes:
        rows: int32 or int64 [gallery rows, n + 1], the row itself first, then its nearest by
            cosine falling; NO_ROW where there are none, and throughout for rows of no picture.
            One more than there are weights, so that leaving one out leaves enough.
        weights: float64 [n], of the picture itself, its nearest...; falling (see
            expansion.augmentation_weights).

    Raises:
        ValueError: when rows and weights do not fit.
    """

    rows: NDArray[np.signedinteger]
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] != len(self.weights) + 1:
            raise ValueError(f"rows {self.rows.shape} do not fit {len(self.weights)} weights")

    @classmethod
    def build(
        cls, searcher: Searcher, view: View, weights: NDArray[np.float64] | None = None
    ) -> Neighbourhoods:
        """Searches each picture of a view among the others, a block at a time.

        Args:
            searcher: over the view.
            view: the gallery pictures.
            weights: augmentation_weights() unless given.
        """
        by_rank = augmentation_weights() if weights is None else np.asarray(weights, np.float64)
        lists = np.full((view.stored.rows, len(by_rank) + 1), NO_ROW, np.int32)
        rows = np.flatnonzero(view.mask)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            asked = Embeddings(view.stored.read(block), tuple(map(str, block)), view.fingerprint)
            lists[block] = itself_first(block, searcher.search(asked, lists.shape[1]))
        return cls(lists, by_rank)

    def rerank(
        self,
        queries: Embeddings,
        found: Neighbours,
        vectors: Vectors,
        k: int | None = None,
        *,
        without: Sequence[NDArray[np.int64]] | None = None,
    ) -> Neighbours:
        """Orders each query's list by the cosines of the augmented pictures.

        Args:
            queries: float32 [q, d].
            found: their neighbours by plain cosine, more than are wanted.
            vectors: the gallery's.
            k: neighbours kept; all unless given.
            without: for each query rows that are left out, as if the gallery did not have them:
                neither found nor part of others. Exact for one row; where several are left out
                of one neighbourhood, it is made of fewer pictures.

        Raises:
            ValueError: when `found` or `without` is of other queries.
        """
        if found.query_ids != queries.ids or not len(queries) == len(without or queries):
            raise ValueError("the neighbours or the rows left out are of other queries")
        nobody = np.zeros(0, np.int64)
        scores = np.full(found.rows.shape, -np.inf, np.float32)
        for i, listed in enumerate(found.rows):
            banned = nobody if without is None else without[i]
            places = np.flatnonzero((listed != NO_ROW) & ~np.isin(listed, banned))
            if places.size:
                pictures = self._augmented(listed[places], vectors, banned)
                cosines = pictures.astype(np.float64) @ queries.vectors[i].astype(np.float64)
                scores[i, places] = cosines
        return ranked(found.rows, scores, found.query_ids, k)

    def _augmented(
        self, listed: NDArray[np.int64], vectors: Vectors, banned: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The augmented unit vectors of some rows, float32 [n, d]."""
        lists = self.rows[listed].astype(np.int64)
        if banned.size:
            lists[np.isin(lists, banned)] = NO_ROW
            # those that are left move up
            order = np.argsort(lists == NO_ROW, axis=1, kind="stable")
            lists = np.take_along_axis(lists, order, axis=1)
        lists = lists[:, : len(self.weights)]
        members, place = np.unique(lists, return_inverse=True)
        weights = np.zeros((len(listed), len(members)), np.float32)
        np.put_along_axis(
            weights,
            place.reshape(lists.shape),
            np.where(lists == NO_ROW, 0, self.weights).astype(np.float32),
            axis=1,
        )
        there = members != NO_ROW
        return unit_rows(weights[:, there] @ vectors.read(members[there]))
