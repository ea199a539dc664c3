"""Label-aware order of retrieval lists: pictures of the query's landmark come first.

The rules come from the first place of the retrieval and the third of the recognition contest on
Google Landmarks 2019 ("Large-scale Landmark Retrieval/Recognition under a Noisy and Diverse
Dataset", Ozaki and Yokoo). The soft form comes from the second place of the retrieval contest of
2021.

The labels of queries and of index pictures come from a third set of labelled pictures, such as the
train set of a contest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.rerank.steps.ranking import ranked
from lmk.rerank.steps.voting import label_sums, vote

_TIER = 2.0  # more than two cosines can be apart


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """The label of each of some pictures, with a score.

    Attributes:
        codes: int64 [n], label code; -1 for none.
        scores: float32 [n], mean cosine over the nearest pictures; other labels count as 0.
    """

    codes: NDArray[np.int64]
    scores: NDArray[np.float32]


def soft_labels(
    neighbours: Neighbours,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    n: int = 3,
) -> SoftLabels:
    """Returns the label with the largest sum of cosines among the n nearest labelled pictures.

    Args:
        neighbours: the neighbours among labelled pictures.
        label_offsets, label_codes: the labels of these pictures (voting.vote).
        n: number of neighbours that vote; score = sum / n also for fewer neighbours.
    """
    weights = np.maximum(neighbours.scores[:, :n], 0)
    result = vote(neighbours.rows[:, :n], weights, label_offsets, label_codes)
    return SoftLabels(result.winner, (result.total / n).astype(np.float32))


def sort_by_label(neighbours: Neighbours, queries: SoftLabels, index: SoftLabels) -> Neighbours:
    """Returns the lists with the pictures of the query's label in front.

    Args:
        neighbours: the lists, over index rows.
        queries: [q], the labels of the queries.
        index: [rows], the labels of the index rows.

    Returns:
        The same rows; the score is the cosine, plus 2 for a moved picture.
    """
    tiers = _same(neighbours, queries, index).astype(np.float32)
    return _in_tiers(neighbours.rows, neighbours.scores, tiers, neighbours.query_ids, neighbours.k)


def insert_by_label(
    neighbours: Neighbours,
    queries: SoftLabels,
    index: SoftLabels,
    *,
    sure: float = 0.6,
    k: int = 100,
) -> Neighbours:
    """Returns lists sorted by label, with the pictures of that label that the search missed.

    A missed picture x is added when score(query) + score(x) > sure, by falling score.

    Args:
        neighbours, queries, index: as sort_by_label.
        sure: the sum that the two scores must exceed.
        k: length of the new lists.

    Returns:
        Lists of k. The score is the cosine + 4 for pictures of the label that were in the list,
        score(x) + 2 for added pictures, and the cosine for others.
    """
    by_label = _rows_by_label(index)
    longest = max((len(rows) for rows in by_label.values()), default=0)
    width = neighbours.k + longest
    rows = np.full((len(neighbours), max(width, k)), NO_ROW, np.int64)
    scores = np.full(rows.shape, -np.inf, np.float32)
    tiers = np.zeros(rows.shape, np.float32)
    rows[:, : neighbours.k], scores[:, : neighbours.k] = neighbours.rows, neighbours.scores
    tiers[:, : neighbours.k] = 2 * _same(neighbours, queries, index)
    for i, code in enumerate(queries.codes):
        alike = by_label.get(int(code), np.zeros(0, np.int64))
        missed = alike[~np.isin(alike, neighbours.rows[i])]
        missed = missed[queries.scores[i] + index.scores[missed] > sure]
        added = slice(neighbours.k, neighbours.k + missed.size)
        rows[i, added], scores[i, added], tiers[i, added] = missed, index.scores[missed], 1
    return _in_tiers(rows, scores, tiers, neighbours.query_ids, k)


@dataclass(frozen=True, eq=False)
class LabelShares:
    """Labels of queries with shares that sum to 1 for each query with a label.

    Attributes:
        query, code: int64 [n], sorted by query, then code.
        share: float64 [n].
    """

    query: NDArray[np.int64]
    code: NDArray[np.int64]
    share: NDArray[np.float64]


def tags_of(
    neighbours: Neighbours,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    n: int = 3,
) -> LabelShares:
    """Returns the labels of the n nearest labelled pictures, by share of the sum of cosines."""
    weights = np.maximum(neighbours.scores[:, :n], 0)
    sums = label_sums(neighbours.rows[:, :n], weights, label_offsets, label_codes)
    whole = np.bincount(sums.query, sums.total, minlength=len(neighbours))
    some = sums.total > 0
    query, total = sums.query[some], sums.total[some]
    return LabelShares(query, sums.code[some], total / whole[query])


def boost_by_tags(
    neighbours: Neighbours, tags: LabelShares, row_codes: NDArray[np.int64], *, weight: float = 1.0
) -> Neighbours:
    """Returns lists whose scores rise by weight * the query's share of the picture's label.

    This is the soft form. A second call serves a second kind of label, such as the country
    (weights 1 and .1 in the contest).

    Args:
        neighbours: the lists.
        tags: the labels of the queries (tags_of).
        row_codes: int64 [rows], the nearest label of each index row; -1 for none.
        weight: the weight of a share of 1.
    """
    labels = int(max(row_codes.max(initial=-1), tags.code.max(initial=-1))) + 2
    known = tags.query * labels + tags.code  # rising: sorted by query, then code
    codes = np.where(neighbours.rows == NO_ROW, -1, row_codes[np.maximum(neighbours.rows, 0)])
    wanted = np.arange(len(neighbours))[:, None] * labels + np.where(codes < 0, labels - 1, codes)
    place = np.searchsorted(known, wanted)
    hit = place < known.size
    hit[hit] = known[place[hit]] == wanted[hit]
    share = np.zeros(neighbours.rows.shape)
    share[hit] = tags.share[place[hit]]
    return ranked(neighbours.rows, neighbours.scores + weight * share, neighbours.query_ids)


def _same(neighbours: Neighbours, queries: SoftLabels, index: SoftLabels) -> NDArray[np.bool_]:
    """Returns bool [q, k], whether the row has the label of the query."""
    codes = index.codes[np.maximum(neighbours.rows, 0)] if len(index.codes) else neighbours.rows
    there = (neighbours.rows != NO_ROW) & (queries.codes >= 0)[:, None]
    same: NDArray[np.bool_] = there & (codes == queries.codes[:, None])
    return same


def _in_tiers(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    tiers: NDArray[np.float32],
    query_ids: tuple[str, ...],
    k: int,
) -> Neighbours:
    """Returns lists by tier falling, then score falling, then place."""
    # Before the tiers are added, so that rounding makes no ties.
    order = np.lexsort((-scores, -np.where(rows == NO_ROW, -1, tiers)), axis=1)[:, :k]
    raised = (scores + _TIER * tiers).astype(np.float32)
    return Neighbours(
        np.take_along_axis(rows, order, axis=1),
        np.take_along_axis(raised, order, axis=1),
        query_ids,
    )


def _rows_by_label(index: SoftLabels) -> dict[int, NDArray[np.int64]]:
    order = np.argsort(index.codes, kind="stable")
    codes, starts, counts = np.unique(index.codes[order], return_index=True, return_counts=True)
    return {
        int(code): order[start : start + count]
        for code, start, count in zip(codes, starts, counts, strict=True)
        if code >= 0
    }
