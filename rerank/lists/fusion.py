"""Fusion: several embedders answer as one, by the weighted sum of their cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.steps.ranking import ranked


def fuse(
    queries: Sequence[Embeddings],
    found: Sequence[Neighbours],
    vectors: Sequence[Vectors],
    weights: Sequence[float],
    k: int,
) -> Neighbours:
    """Scores what any embedder found by the weighted mean of all embedders' cosines.

    A row that one embedder did not find gets its cosine all the same, so nothing is lost but what
    none of them found: search deeper than k. It equals a search in the concatenated vectors, each
    part scaled by the root of its weight's share, over the rows found.

    Args:
        queries: the same queries, in the same order, of each embedder.
        found: their neighbours; row numbers mean the same pictures for all embedders.
        vectors: of the gallery, by each embedder.
        weights: positive, one an embedder.
        k: neighbours wanted.

    Raises:
        ValueError: when the lengths differ, queries differ, or a weight is not above 0.
    """
    if not len(queries) == len(found) == len(vectors) == len(weights) >= 1:
        raise ValueError("queries, neighbours, vectors and a weight are needed of each embedder")
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"weights must be above 0, got {list(weights)}")
    ids = queries[0].ids
    if any(e.ids != ids for e in queries) or any(n.query_ids != ids for n in found):
        raise ValueError("the embedders were asked different queries")
    rows = _union([neighbours.rows for neighbours in found])
    scores = np.zeros(rows.shape, np.float64)
    for asked, stored, weight in zip(queries, vectors, weights, strict=True):
        for i, listed in enumerate(rows):
            there = listed != NO_ROW
            near = stored.read(listed[there]).astype(np.float64)
            scores[i, there] += weight * (near @ asked.vectors[i].astype(np.float64))
    return _padded(ranked(rows, scores / sum(weights), ids, k), k)


def _union(lists: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The different rows of each query, rising; NO_ROW where a query has fewer than others."""
    together = np.sort(np.concatenate(lists, axis=1), axis=1)
    together[:, 1:][together[:, 1:] == together[:, :-1]] = NO_ROW
    return together


def _padded(found: Neighbours, k: int) -> Neighbours:
    missing = ((0, 0), (0, max(k - found.k, 0)))
    return Neighbours(
        np.pad(found.rows, missing, constant_values=NO_ROW),
        np.pad(found.scores, missing, constant_values=-np.inf),
        found.query_ids,
    )
