"""k-reciprocal re-ranking: pictures that are each other's neighbours come first.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), with
the distances of their code. Here it is done for each query alone, on the query and its short
list: an answer then does not depend on what else is asked, and a gallery of any size costs the
same. The further the search goes, the nearer this is to the method on the whole gallery.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.steps.ranking import ranked

_COPIES = 1e-6  # of equal float32 vectors, but for rounding


@dataclass(frozen=True)
class KReciprocal:
    """Its parameters; the defaults are the paper's.

    Attributes:
        k1: neighbours among which two pictures must find each other.
        k2: neighbours whose encodings are averaged.
        share: of the plain distance in the final one ("lambda").

    Raises:
        ValueError: for k1 or k2 below 1, or a share outside 0 to 1.
    """

    k1: int = 20
    k2: int = 6
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.share <= 1:
            raise ValueError(f"k1 and k2 must be at least 1, share within 0 to 1: {self}")

    def rerank(self, queries: Embeddings, found: Neighbours, vectors: Vectors) -> Neighbours:
        """Orders each query's short list anew.

        Args:
            queries: float32 [q, d].
            found: their neighbours, all of which are ordered anew; some 50 to 300.
            vectors: the gallery's.

        Returns:
            The same rows with the scores 1 - distance, from 0 (nothing shared) to 1.

        Raises:
            ValueError: when `found` is of other queries.
        """
        if found.query_ids != queries.ids:
            raise ValueError("the neighbours are of other queries")
        scores = np.full(found.rows.shape, -np.inf, np.float32)
        for i, rows in enumerate(found.rows):
            listed = rows[rows != NO_ROW]
            if listed.size:
                pool = np.concatenate([queries.vectors[i : i + 1], vectors.read(listed)])
                scores[i, : listed.size] = 1 - self.distances(pool)[1:]
        return ranked(found.rows, scores, found.query_ids)

    def distances(self, pool: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distances of the first of some unit vectors [m, d] to all of them, float64 [m], 0 to 1.

        Ties among neighbours go to the earlier vector.
        """
        wide = pool.astype(np.float64)
        apart = 2 - 2 * (wide @ wide.T)  # squared Euclidean
        apart[apart < _COPIES] = 0
        largest = apart.max(axis=1, keepdims=True)
        apart = np.divide(apart, largest, out=np.zeros_like(apart), where=largest > 0)
        order = np.argsort(apart, axis=1, kind="stable")
        # A copy of a picture can stand before it in its own list.
        order = _self_first(order)
        members = self._expanded(order)
        encoding = np.exp(-apart) * members
        encoding /= encoding.sum(axis=1, keepdims=True)
        if self.k2 > 1:
            encoding = encoding[order[:, : self.k2]].mean(axis=1)
        least = np.minimum(encoding[0], encoding).sum(axis=1)
        most = np.maximum(encoding[0], encoding).sum(axis=1)
        jaccard = 1 - least / most
        final: NDArray[np.float64] = (1 - self.share) * jaccard + self.share * apart[0]
        return final

    def _expanded(self, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [m, m]: the k-reciprocal neighbours of each, and those of theirs that fit in.

        The set of a member is taken over when more than two thirds of it are there already.
        """
        near = _mutual(order, self.k1)
        nearer = _mutual(order, round(self.k1 / 2))
        shared = near.astype(np.float32) @ nearer.T.astype(np.float32)
        fits = near & (shared > 2 / 3 * nearer.sum(axis=1))
        added = fits.astype(np.float32) @ nearer.astype(np.float32)
        members: NDArray[np.bool_] = near | (added > 0)
        return members


def _mutual(order: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """bool [m, m]: the two are among each other's k nearest (and each is its own)."""
    mask = np.zeros(order.shape, np.bool_)
    np.put_along_axis(mask, order[:, : k + 1], True, axis=1)
    return mask & mask.T


def _self_first(order: NDArray[np.int64]) -> NDArray[np.int64]:
    own = np.arange(len(order))[:, None]
    first = np.argsort(order != own, axis=1, kind="stable")
    return np.take_along_axis(order, first, axis=1)
