"""Ranking: candidates and new scores for them become Neighbours again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.index.neighbours import NO_ROW, Neighbours


def ranked(
    rows: NDArray[np.int64],
    scores: NDArray[np.floating],
    query_ids: tuple[str, ...],
    k: int | None = None,
    *,
    keep_order: bool = False,
) -> Neighbours:
    """Orders the candidates of each query by score falling, then row rising.

    Args:
        rows: int64 [q, n], no row twice for a query; NO_ROW where there is none.
        scores: float [q, n]; rounded to float32 before they are compared. -inf leaves a
            candidate out.
        query_ids: the q query ids.
        k: candidates kept for each query; all n unless given.
        keep_order: of equal scores the one that stood first stays first, whatever its row.
    """
    values = np.where(rows == NO_ROW, -np.inf, scores).astype(np.float32)
    places = np.where(np.isneginf(values), NO_ROW, rows)
    ties = np.zeros_like(places) if keep_order else places
    order = np.lexsort((ties, -values), axis=1)[:, : rows.shape[1] if k is None else k]
    return Neighbours(
        np.take_along_axis(places, order, axis=1),
        np.take_along_axis(values, order, axis=1),
        query_ids,
    )
