"""Rescoring: exact scores of candidate rows, and the best k of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW, RowScores
from lmk.index.vectors.scores import scores as true_scores
from lmk.index.vectors.vectors import Vectors

_PAIRS = 1024  # pairs of vectors in memory as float64 at a time
_ROUGH_PAIRS = 1024  # candidates in memory at a time, which fit the processor's cache
_ROUGH = 2.5e-3  # more than twice the change of a score by rounding to half precision


def score_pairs(
    stored: Vectors, queries: NDArray[np.float32], query: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the score of each pair of a query and a row, with the same bits as in every search.

    Args:
        stored: the vectors of the rows.
        queries: float32 [q, dim].
        query: int64 [n], positions in queries.
        rows: int64 [n], row numbers.

    Returns:
        float32 [n].

    Raises:
        GalleryDamaged: see Vectors.read.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        piece = slice(start, start + _PAIRS)
        scores[piece] = true_scores(queries[query[piece]], stored.read(rows[piece]))
    return scores


def best(
    query: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    queries: int,
    k: int,
) -> RowScores:
    """Returns the k best rows of each query, by descending score, then ascending row.

    Args:
        query: int64 [n], the query of each pair, in any order.
        rows: int64 [n], the row of each pair; no pair is repeated.
        scores: float32 [n].
        queries: number of queries.
        k: number of rows of each query.

    Returns:
        Rows int64 [queries, k] and scores float32 [queries, k]; NO_ROW and -inf fill the end.
    """
    order = np.lexsort((rows, -scores, query))
    counts = np.bincount(query, minlength=queries)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    top = order[rank < k]
    places = (query[top], rank[rank < k])
    best_rows = np.full((queries, k), NO_ROW, np.int64)
    values = np.full((queries, k), -np.inf, np.float32)
    best_rows[places], values[places] = rows[top], scores[top]
    return best_rows, values


def best_of(results: Sequence[RowScores], k: int) -> RowScores:
    """Returns the k best rows of each query in several results (rows and scores [q, n]), as `best`.

    No row may be in two results of one query.
    """
    rows, scores = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
    query, place = np.nonzero(rows != NO_ROW)
    return best(query, rows[query, place], scores[query, place], len(rows), k)


def rescore(
    stored: Vectors,
    queries: NDArray[np.float32],
    query: NDArray[np.int64],
    rows: NDArray[np.int64],
    k: int,
) -> RowScores:
    """Returns the k best of the rows proposed for each query, as `best`, with their scores.

    Stored vectors have length 1 within 1e-3. Only rows whose float32 score is within twice this
    distance of the k-th best are scored in float64.

    Args:
        stored: the vectors of the rows.
        queries: float32 [q, dim].
        query: int64 [n], positions in queries, ascending.
        rows: int64 [n], row numbers; no pair is repeated.
        k: number of rows of each query.
    """
    counts = np.bincount(query, minlength=len(queries))
    firsts = np.cumsum(counts) - counts
    rough = np.empty(len(rows), np.float32)
    together = max(1, _ROUGH_PAIRS // max(int(counts.max(initial=1)), 1))  # queries
    for start in range(0, len(queries), together):
        some = slice(start, start + together)
        begin = int(firsts[start])
        vectors = stored.gather(rows[begin : begin + int(counts[some].sum())])
        ends = (firsts[some] + counts[some]).tolist()
        for vector, first, end in zip(queries[some], firsts[some].tolist(), ends, strict=True):
            rough[first:end] = vectors[first - begin : end - begin] @ vector
    order = np.lexsort((-rough, query))
    least = np.full(len(queries), -np.inf, np.float32)
    enough = counts > k
    least[enough] = rough[order[firsts[enough] + k - 1]] - _ROUGH
    near = ~(rough < least[query])
    query, rows = query[near], rows[near]
    return best(query, rows, score_pairs(stored, queries, query, rows), len(queries), k)
