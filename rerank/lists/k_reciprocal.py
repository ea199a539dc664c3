"""k-reciprocal re-ranking: pictures that are each other's neighbours come first.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), with
the distances of their code. Here each query and its short list are ordered alone. An answer then
does not depend on the other queries, and the cost does not depend on the size of the gallery. The
longer the list, the closer the result is to the method on the whole gallery.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.steps.ranking import ranked

_COPIES = 1e-6  # distance of equal float32 vectors, which rounding keeps from 0


def k_reciprocal(
    queries: Embeddings,
    neighbours: Neighbours,
    vectors: Vectors,
    *,
    k1: int = 20,
    k2: int = 6,
    share: float = 0.3,
) -> Neighbours:
    """Returns each query's short list in the order of the k-reciprocal distances.

    The defaults are those of the paper.

    Args:
        queries: float32 [q, d].
        neighbours: the neighbours of these queries, usually 50 to 300; all of them are ordered.
        vectors: the vectors of the gallery.
        k1, k2, share: as in `distances`.

    Returns:
        The same rows with the scores 1 - distance, from 0 (nothing shared) to 1.

    Raises:
        ValueError: `neighbours` belongs to other queries.
    """
    if neighbours.query_ids != queries.ids:
        raise ValueError("the neighbours are of other queries")
    scores = np.full(neighbours.rows.shape, -np.inf, np.float32)
    for i, rows in enumerate(neighbours.rows):
        listed = rows[rows != NO_ROW]
        if listed.size:
            pool = np.concatenate([queries.vectors[i : i + 1], vectors.read(listed)])
            scores[i, : listed.size] = 1 - distances(pool, k1, k2, share)[1:]
    return ranked(neighbours.rows, scores, neighbours.query_ids)


def distances(
    pool: NDArray[np.float32], k1: int = 20, k2: int = 6, share: float = 0.3
) -> NDArray[np.float64]:
    """Returns distances of the first unit vector [m, d] to all, float64 [m], from 0 to 1.

    Ties among neighbours go to the earlier vector.

    Args:
        pool: float32 [m, d], unit vectors.
        k1: two pictures are mutual neighbours if each is among the k1 nearest of the other.
        k2: number of neighbours whose encodings are averaged.
        share: weight of the plain distance in the final one ("lambda"), 0 to 1.
    """
    wide = pool.astype(np.float64)
    apart = 2 - 2 * (wide @ wide.T)  # squared Euclidean
    apart[apart < _COPIES] = 0
    largest = apart.max(axis=1, keepdims=True)
    apart = np.divide(apart, largest, out=np.zeros_like(apart), where=largest > 0)
    order = np.argsort(apart, axis=1, kind="stable")
    # A copy of a picture can stand before it in its own list.
    first = np.argsort(order != np.arange(len(order))[:, None], axis=1, kind="stable")
    order = np.take_along_axis(order, first, axis=1)
    encoding = np.exp(-apart) * _expanded(order, k1)
    encoding /= encoding.sum(axis=1, keepdims=True)
    if k2 > 1:
        encoding = encoding[order[:, :k2]].mean(axis=1)
    least = np.minimum(encoding[0], encoding).sum(axis=1)
    most = np.maximum(encoding[0], encoding).sum(axis=1)
    final: NDArray[np.float64] = (1 - share) * (1 - least / most) + share * apart[0]
    return final


def _expanded(order: NDArray[np.int64], k1: int) -> NDArray[np.bool_]:
    """Returns bool [m, m], the expanded set of k-reciprocal neighbours of each vector."""
    near, nearer = _mutual(order, k1), _mutual(order, round(k1 / 2))
    # The set of a member is added if more than two thirds of it belong to the set already.
    shared = near.astype(np.float32) @ nearer.T.astype(np.float32)
    fits = near & (shared > 2 / 3 * nearer.sum(axis=1))
    added = fits.astype(np.float32) @ nearer.astype(np.float32)
    members: NDArray[np.bool_] = near | (added > 0)
    return members


def _mutual(order: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Returns bool [m, m], whether two are among each other's k nearest (each is its own)."""
    mask = np.zeros(order.shape, np.bool_)
    np.put_along_axis(mask, order[:, : k + 1], True, axis=1)
    return mask & mask.T
