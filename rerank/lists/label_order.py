"""Label-aware order of retrieval lists: what shares the query's landmark comes first.

From the first place of the retrieval and the third of the recognition contest on Google Landmarks
2019 ("Large-scale Landmark Retrieval/Recognition under a Noisy and Diverse Dataset", Ozaki and
Yokoo) and, the soft form, from the second place of the retrieval contest of 2021.

Labels come from a third set of pictures that have some (the train set); queries and index are
compared through it.
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
    """The label of each of some pictures, and how sure it is.

    Attributes:
        codes: int64 [n], label code; -1 for none.
        scores: float32 [n], mean cosine over the neighbours asked, those of other labels as 0.
    """

    codes: NDArray[np.int64]
    scores: NDArray[np.float32]


def soft_labels(
    found: Neighbours,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    n: int = 3,
) -> SoftLabels:
    """The label with the largest sum of cosines among the n nearest labelled pictures.

    Args:
        found: neighbours among labelled pictures.
        label_offsets, label_codes: their labels (voting.vote).
        n: neighbours that vote; score = sum / n also where fewer were found.
    """
    weights = np.maximum(found.scores[:, :n], 0)
    result = vote(found.rows[:, :n], weights, label_offsets, label_codes)
    return SoftLabels(result.winner, (result.total / n).astype(np.float32))


def sort_by_label(found: Neighbours, queries: SoftLabels, index: SoftLabels) -> Neighbours:
    """Moves the pictures of the query's label to the front; otherwise the order stays.

    Args:
        found: the lists, over index rows.
        queries: [q], of the queries.
        index: [rows], of the index rows.

    Returns:
        The same rows; the cosine, plus 2 for those moved, is the score.
    """
    tiers = _same(found, queries, index).astype(np.float32)
    return _in_tiers(found.rows, found.scores, tiers, found.query_ids, found.k)


def insert_by_label(
    found: Neighbours,
    queries: SoftLabels,
    index: SoftLabels,
    *,
    sure: float = 0.6,
    k: int = 100,
) -> Neighbours:
    """Sorts by label, and puts pictures of that label the search missed behind those it found.

    A missed picture x is added when score(query) + score(x) > sure, the surest first.

    Args:
        found, queries, index: as sort_by_label.
        sure: what the two scores must exceed together.
        k: length of the new lists.

    Returns:
        Lists of k: score = cosine + 4 for pictures of the label that were found, score(x) + 2
        for those added, the cosine for others.
    """
    by_label = _rows_by_label(index)
    longest = max((len(rows) for rows in by_label.values()), default=0)
    width = found.k + longest
    rows = np.full((len(found), max(width, k)), NO_ROW, np.int64)
    scores = np.full(rows.shape, -np.inf, np.float32)
    tiers = np.zeros(rows.shape, np.float32)
    rows[:, : found.k], scores[:, : found.k] = found.rows, found.scores
    tiers[:, : found.k] = 2 * _same(found, queries, index)
    for i, code in enumerate(queries.codes):
        alike = by_label.get(int(code), np.zeros(0, np.int64))
        missed = alike[~np.isin(alike, found.rows[i])]
        missed = missed[queries.scores[i] + index.scores[missed] > sure]
        added = slice(found.k, found.k + missed.size)
        rows[i, added], scores[i, added], tiers[i, added] = missed, index.scores[missed], 1
    return _in_tiers(rows, scores, tiers, found.query_ids, k)


@dataclass(frozen=True, eq=False)
class LabelShares:
    """Labels of queries with shares that sum to 1 for each query that has any.

    Attributes:
        query, code: int64 [n], sorted by query, then code.
        share: float64 [n].
    """

    query: NDArray[np.int64]
    code: NDArray[np.int64]
    share: NDArray[np.float64]


def tags_of(
    found: Neighbours,
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    *,
    n: int = 3,
) -> LabelShares:
    """The labels of the n nearest labelled pictures, by their share of the sum of cosines."""
    weights = np.maximum(found.scores[:, :n], 0)
    sums = label_sums(found.rows[:, :n], weights, label_offsets, label_codes)
    whole = np.bincount(sums.query, sums.total, minlength=len(found))
    some = sums.total > 0
    query, total = sums.query[some], sums.total[some]
    return LabelShares(query, sums.code[some], total / whole[query])


def boost_by_tags(
    found: Neighbours, tags: LabelShares, row_codes: NDArray[np.int64], *, weight: float = 1.0
) -> Neighbours:
    """Adds weight * the query's share of a picture's label to the score (the soft form).

    For a second kind of label, such as the country, do it again with its tags and codes
    (weights 1 and .1 in the contest).

    Args:
        found: the lists.
        tags: of the queries (tags_of).
        row_codes: int64 [rows], the nearest label of each index row; -1 for none.
        weight: of a share of 1.
    """
    labels = int(max(row_codes.max(initial=-1), tags.code.max(initial=-1))) + 2
    known = tags.query * labels + tags.code  # rising: sorted by query, then code
    codes = np.where(found.rows == NO_ROW, -1, row_codes[np.maximum(found.rows, 0)])
    wanted = np.arange(len(found))[:, None] * labels + np.where(codes < 0, labels - 1, codes)
    place = np.searchsorted(known, wanted)
    hit = place < known.size
    hit[hit] = known[place[hit]] == wanted[hit]
    share = np.zeros(found.rows.shape)
    share[hit] = tags.share[place[hit]]
    return ranked(found.rows, found.scores + weight * share, found.query_ids)


def _same(found: Neighbours, queries: SoftLabels, index: SoftLabels) -> NDArray[np.bool_]:
    """bool [q, k]: the row has the label of the query."""
    codes = index.codes[np.maximum(found.rows, 0)] if len(index.codes) else found.rows
    there = (found.rows != NO_ROW) & (queries.codes >= 0)[:, None]
    same: NDArray[np.bool_] = there & (codes == queries.codes[:, None])
    return same


def _in_tiers(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    tiers: NDArray[np.float32],
    query_ids: tuple[str, ...],
    k: int,
) -> Neighbours:
    """By tier falling, then score falling, then place; so that rounding after `+ 2` ties nothing.

    Rounding never turns an order round: the sums fall wherever what is summed does.
    """
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
