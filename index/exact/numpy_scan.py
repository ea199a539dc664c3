"""Exact search with numpy alone, for searches faster than the loading of the compiled scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW, RowScores
from lmk.index.vectors.scores import scores
from lmk.index.vectors.vectors import Vectors, row_blocks

_BLOCK_ROWS = 4096
_BLOCK_QUERIES = 256


def nearest(
    stored: Vectors, rows: NDArray[np.int64], queries: NDArray[np.float32], k: int
) -> RowScores:
    """Returns the k nearest of some rows for each query, by descending score, then ascending row.

    A float32 matrix product selects the rows of a block that may belong to the answer, and only
    these are scored. Any float32 sum of d products is within d u / (1 - d u), u = 2^-24, of the
    true sum, times the lengths (Higham, Accuracy and Stability of Numerical Algorithms, section
    3.1).

    Args:
        stored: the vectors.
        rows: int64 [n], ascending, at least k.
        queries: float32 [q, dim].
        k: number of neighbours, at least 1.

    Returns:
        rows int64 [q, k] and scores float32 [q, k].

    Raises:
        GalleryDamaged: see Vectors.read.
    """
    best = np.full((len(queries), k), NO_ROW, np.int64)
    values = np.full((len(queries), k), -np.inf, np.float32)
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    errors = 1.01 * (stored.dim + 8) * 2.0**-24 * norms + 2.0**-23 * (norms + 1)
    for block in row_blocks(rows, _BLOCK_ROWS):
        vectors = stored.read(block)
        for first in range(0, len(queries), _BLOCK_QUERIES):
            products = queries[first : first + _BLOCK_QUERIES] @ vectors.T
            if len(block) > k:
                kth = np.partition(products, -k, axis=1)[:, -k].astype(np.float64)
            else:
                kth = np.full(len(products), -np.inf)
            for i, row in enumerate(products, first):
                floor = max(kth[i - first] - 2 * errors[i], values[i, -1] - errors[i])
                chosen = np.flatnonzero(row >= floor)
                if chosen.size:
                    all_rows = np.concatenate([best[i], block[chosen]])
                    all_values = np.concatenate([values[i], scores(queries[i], vectors[chosen])])
                    order = np.lexsort((all_rows, -all_values))
                    order = order[all_rows[order] != NO_ROW][:k]
                    best[i, : len(order)] = all_rows[order]
                    values[i, : len(order)] = all_values[order]
    return best, values
