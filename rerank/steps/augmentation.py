"""Augmentation of the short list: gallery pictures are compared together with their nearest.

An augmented vector is the weighted mean of a picture and its nearest (database augmentation). Only
those of the pictures that a search returned are computed. A gallery then saves the row numbers of
each picture's nearest instead of a second set of vectors, and the search stays as it is. A picture
can be left out of all augmented vectors. Leave-one-out needs this, because augmented vectors
contain the very pictures that are queries, and would flatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.scores import scores as dots
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors, row_blocks
from lmk.index.vectors.view import View
from lmk.rerank.steps.expansion import augmentation_weights, itself_first

_BLOCK = 1024  # rows searched at a time
_PAIRS = 16_384  # queries and neighbours compared at a time: bounds the memory
_DOTS = 2048  # of them multiplied at a time: fits into the processor's cache


@dataclass(frozen=True, eq=False)
class OwnLabels:
    """The labels of rows that are augmented with rows of the same label alone.

    Attributes:
        offsets, codes: the labels of each gallery row (see PipelineContext).
        labels: the number of labels.
    """

    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    labels: int

    def others(self, lists: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns the places of rows that are left out of their list: bool [lists, n].

        A list whose first row has no label stays whole.

        Args:
            lists: int64 [lists, n], each the row itself, then its nearest rows or NO_ROW.
        """
        there = lists != NO_ROW
        counts = np.where(there, self.offsets[lists + 1] - self.offsets[lists], 0)
        if counts.max(initial=0) <= 1:
            codes = np.full(lists.shape, -1, np.int64)
            codes[counts == 1] = self.codes[self.offsets[lists[counts == 1]]]
            shared: NDArray[np.bool_] = codes == codes[:, :1]
        else:
            first = np.repeat(lists[:, 0], lists.shape[1])
            others = np.where(there, lists, 0).ravel()
            common = self._matrix[first].multiply(self._matrix[others]).sum(axis=1)
            shared = (np.asarray(common) > 0).reshape(lists.shape)
        return (counts[:, :1] > 0) & ~shared

    @cached_property
    def _matrix(self) -> Any:
        """The labels of the gallery rows as a sparse matrix [rows, labels] of 0 and 1."""
        from scipy.sparse import csr_array  # takes a tenth of a second to import

        ones = np.ones(len(self.codes), np.int32)
        shape = len(self.offsets) - 1, self.labels
        return csr_array((ones, self.codes, self.offsets), shape)


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """The nearest pictures of each gallery picture.

    Attributes:
        rows: int32 or int64 [gallery rows, n + 1], the row itself, then its nearest rows by
            falling cosine. NO_ROW fills shorter lists, and the lists of rows without a picture. A
            list has one row more than there are weights, so that a row can be left out.
        weights: float64 [n], falling: the weight of the picture itself, then of its nearest
            pictures (see expansion.augmentation_weights).

    Raises:
        ValueError: the shapes of rows and weights do not match.
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
            searcher: a search over the view.
            view: the gallery pictures.
            weights: float64 [n], see the class. Default: augmentation_weights().
        """
        by_rank = augmentation_weights() if weights is None else np.asarray(weights, np.float64)
        lists = np.full((view.stored.rows, len(by_rank) + 1), NO_ROW, np.int32)
        for block in row_blocks(np.flatnonzero(view.mask), _BLOCK):
            near = searcher.search(view.embeddings(block), lists.shape[1])
            lists[block] = itself_first(block, near)
        return cls(lists, by_rank)

    def cosines(
        self,
        queries: Embeddings,
        neighbours: Neighbours,
        vectors: Vectors,
        *,
        without: Sequence[NDArray[np.int64]] | None = None,
        own: OwnLabels | None = None,
    ) -> NDArray[np.float32]:
        """Returns the cosines of queries and augmented neighbours: float32 [q, k].

        The cosine is -inf if there is no neighbour or it is left out. Each row is read once for
        many queries. The result for a query does not depend on the other queries.

        Args:
            queries: the queries.
            neighbours: the neighbours of the queries by plain cosine.
            vectors: the vectors of the gallery.
            without: for each query the rows that count as absent from the gallery: they are no
                neighbours and part of no augmented vector. The result is exact for one row. If
                several rows are left out of one neighbourhood, it has fewer pictures.
            own: the rows whose augmented vectors have only rows that share a label with them.

        Raises:
            ValueError: `neighbours` or `without` belongs to other queries.
        """
        if neighbours.query_ids != queries.ids or not len(queries) == len(without or queries):
            raise ValueError("the neighbours or the rows left out are of other queries")
        scores = np.full(neighbours.rows.shape, -np.inf, np.float32)
        step = max(_PAIRS // max(neighbours.k, 1), 1)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            banned = None if without is None else without[part]
            query, place, lists = self._pairs(neighbours.rows[part], banned, own)
            if query.size:
                scores[part][query, place] = self._compared(
                    queries.vectors[part], query, lists, vectors
                )
        return scores

    def _pairs(
        self,
        rows: NDArray[np.int64],
        without: Sequence[NDArray[np.int64]] | None,
        own: OwnLabels | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns query number, place and list (int64 [pairs, n]) of each neighbour that counts."""
        there = rows != NO_ROW
        for i, banned in enumerate(without or ()):
            there[i] &= ~np.isin(rows[i], banned)
        query, place = np.nonzero(there)
        lists = self.rows[rows[query, place]].astype(np.int64)
        for i, banned in enumerate(without or ()):
            mine = slice(*np.searchsorted(query, [i, i + 1]))
            lists[mine][np.isin(lists[mine], banned)] = NO_ROW
        if own is not None:
            lists[own.others(lists)] = NO_ROW
        if without is not None or own is not None:  # the remaining rows move up
            order = np.argsort(lists == NO_ROW, axis=1, kind="stable")
            lists = np.take_along_axis(lists, order, axis=1)
        return query, place, lists[:, : len(self.weights)]

    def _compared(
        self,
        queries: NDArray[np.float32],
        query: NDArray[np.int64],
        lists: NDArray[np.int64],
        vectors: Vectors,
    ) -> NDArray[np.float32]:
        """Returns the cosines of each pair's query and augmented vector: float32 [pairs]."""
        different, of_pair = _distinct(lists)
        members = np.unique(different[different != NO_ROW])
        read = vectors.read(members)
        total = np.zeros((len(different), vectors.dim), np.float32)
        for rank, weight in enumerate(self.weights.astype(np.float32)):  # always in this order
            some = np.flatnonzero(different[:, rank] != NO_ROW)
            total[some] += weight * read[np.searchsorted(members, different[some, rank])]
        augmented = unit_rows(total)
        cosines = np.empty(len(query), np.float32)
        for start in range(0, len(query), _DOTS):
            part = slice(start, start + _DOTS)
            cosines[part] = dots(queries[query[part]], augmented[of_pair[part]])
        return cosines


def _distinct(lists: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the distinct lists, and the number of the distinct list for each list."""
    order = np.lexsort(lists.T)
    ordered = lists[order]
    fresh = np.ones(len(lists), np.bool_)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    of_list = np.empty(len(lists), np.int64)
    of_list[order] = np.cumsum(fresh) - 1
    return ordered[fresh], of_list
