"""Expansion: queries move towards their neighbours before another search.

Augmentation (augmentation.py) does the same to gallery pictures. Its weights are here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.vectors import Vectors

_BLOCK = 1024  # queries whose neighbours' vectors are in memory at a time


def expand(
    queries: Embeddings,
    neighbours: Neighbours,
    vectors: Vectors,
    *,
    n: int = 10,
    alpha: float = 3.0,
) -> Embeddings:
    """Returns each query plus its neighbours, weighted by similarity (alpha query expansion).

        normalise(q + sum over the n nearest x of max(cos(q, x), 0) ** alpha * x)

    Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation" (TPAMI
    2019), section 3.4; alpha = 0 is the average query expansion of Chum et al. (ICCV 2007), where
    a neighbour with a cosine of 0 or less still adds nothing.

    Args:
        queries: float32 [q, d].
        neighbours: the neighbours of these queries; rows of `vectors`.
        vectors: the vectors of the gallery.
        n: largest number of neighbours to use.
        alpha: the exponent; a larger one reduces the influence of distant neighbours.

    Raises:
        ValueError: `neighbours` belongs to other queries.
    """
    if neighbours.query_ids != queries.ids:
        raise ValueError("the neighbours are of other queries")
    weights = _weights(neighbours.scores[:, :n], alpha)
    moved = np.empty_like(queries.vectors)
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        near = _sums(vectors, neighbours.rows[part, :n], weights[part])
        moved[part] = unit_rows(queries.vectors[part] + near)
    return Embeddings(moved, queries.ids, queries.fingerprint)


def augmentation_weights(n: int = 10, spread: float = 1.5) -> NDArray[np.float64]:
    """Returns weights of a picture and its n - 1 nearest: 1 to 10 ** -spread, over their sum.

    The weights are logarithmically even, as in the second place of the Google Landmark Recognition
    contest of 2020 (n = 10, spread = 1.5).
    """
    weights = np.logspace(0, -spread, n)
    return np.asarray(weights / weights.sum(), np.float64)


def itself_first(block: NDArray[np.int64], neighbours: Neighbours) -> NDArray[np.int64]:
    """Returns the neighbours of a block of rows, int64 [b, n], each row itself in front.

    Copies of a picture may stand before it, and an approximate search may miss it.
    """
    order = np.argsort(neighbours.rows != block[:, None], axis=1, kind="stable")
    rows = np.take_along_axis(neighbours.rows, order, axis=1)
    missing = np.flatnonzero(rows[:, 0] != block)
    rows[missing, 1:] = rows[missing, :-1]
    rows[missing, 0] = block[missing]
    return rows


def _weights(scores: NDArray[np.float32], alpha: float) -> NDArray[np.float64]:
    """Returns max(score, 0) ** alpha; 0 for a score not above 0, even for an alpha of 0."""
    wide = np.maximum(scores, 0).astype(np.float64)
    return np.where(wide > 0, wide**alpha, 0.0)


def _sums(
    vectors: Vectors, rows: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Returns the sums of weights[q, j] * vectors[rows[q, j]], float32 [q, d], without NO_ROW."""
    there = (rows != NO_ROW) & (weights != 0)
    wanted = np.unique(rows[there])
    total = np.zeros((len(rows), vectors.dim), np.float64)
    near = vectors.read(wanted)
    for rank in range(rows.shape[1]):  # one neighbour of each query at a time bounds the memory
        chosen = np.flatnonzero(there[:, rank])
        places = np.searchsorted(wanted, rows[chosen, rank])
        total[chosen] += weights[chosen, rank, None] * near[places]
    return total.astype(np.float32)
