"""Makes Neighbours of candidates with new scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW, Neighbours

MOST = 1000  # largest number of neighbours of one step; it is below LEAST_WIDTH


def ranked(
    rows: NDArray[np.int64],
    scores: NDArray[np.floating],
    query_ids: tuple[str, ...],
    k: int | None = None,
    *,
    keep_order: bool = False,
) -> Neighbours:
    """Returns the candidates of each query by score falling, then row rising.

    Args:
        rows: int64 [q, n], no row twice for a query; NO_ROW for no candidate.
        scores: float [q, n]; rounded to float32 before they are compared. -inf leaves a
            candidate out.
        query_ids: the q query ids.
        k: number of candidates of each query in the result. Default: all n.
        keep_order: candidates with equal scores stay in their order, whatever their rows.
    """
    values = np.where(rows == NO_ROW, -np.inf, scores).astype(np.float32)
    places = np.where(np.isneginf(values), NO_ROW, rows)
    order = np.argsort(-values, axis=1, kind="stable") if keep_order else order_of(places, values)
    order = order[:, : rows.shape[1] if k is None else k]
    return Neighbours(
        np.take_along_axis(places, order, axis=1),
        np.take_along_axis(values, order, axis=1),
        query_ids,
    )


def order_of(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns places by score falling, then row rising: int64 [q, n], for take_along_axis.

    The result is that of lexsort by both, in half of the time. Ties are few, and only queries with
    a tie in the wrong order are sorted by row, too.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    by_score = np.take_along_axis(scores, order, axis=1)
    row = np.take_along_axis(rows, order, axis=1)
    wrong = (by_score[:, 1:] == by_score[:, :-1]) & (row[:, 1:] < row[:, :-1])
    tied = np.flatnonzero(wrong.any(axis=1))
    order[tied] = np.lexsort((rows[tied], -scores[tied]), axis=1)
    return order
