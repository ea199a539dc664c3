"""Retrieval scores: mAP@k, precision and recall at k, first hits (DELF, metrics.py).

AP_q = (1 / min(m_q, k)) * sum of P_q(i) over the ranks i <= k that are hits, with m_q the number
of true pictures and P_q(i) the proportion of hits among the first i. A picture that occurs twice
in a list is a hit once, and its second rank counts as a miss: later ranks do not move up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.eval.files.query_ids import unknown_id
from lmk.eval.files.submission import MAX_IMAGES, RetrievalSubmission
from lmk.eval.files.truth import RetrievalTruth
from lmk.index.vectors.neighbours import NO_ROW, Neighbours


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """The hits among the ranks of each query's list, from which every retrieval score follows.

    Attributes:
        query_ids: the q ids.
        hits: bool [q, k], by query and rank; False past the end of a list and for a repeat.
        relevant: int64 [q], m_q, the number of true pictures.

    Raises:
        ValueError: shapes differ, a query has no true picture, or it has more hits than true
            pictures.
    """

    query_ids: tuple[str, ...]
    hits: NDArray[np.bool_]
    relevant: NDArray[np.int64]

    def __post_init__(self) -> None:
        q = len(self.query_ids)
        if self.hits.ndim != 2 or len(self.hits) != q or self.relevant.shape != (q,):
            raise ValueError(f"{q} queries, hits {self.hits.shape}, relevant {self.relevant.shape}")
        check_relevant(self.hits, self.relevant)

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def k(self) -> int:
        """The number of ranks that count."""
        return int(self.hits.shape[1])

    def average_precisions(self) -> NDArray[np.float64]:
        """Returns float64 [q]: the AP of each query."""
        return average_precisions(self.hits, self.relevant)

    def mean_average_precision(self) -> float:
        """Returns mAP@k."""
        return float(self.average_precisions().mean())

    def hit_counts(self, k: int) -> NDArray[np.float64]:
        """Returns float64 [q]: the number of hits among the first k ranks."""
        counts: NDArray[np.float64] = self.hits[:, : check_k(k, self.k)].sum(axis=1, dtype=float)
        return counts

    def precisions(self, k: int) -> NDArray[np.float64]:
        """Returns float64 [q]: the proportion of hits among k ranks; missing ranks are misses."""
        return self.hit_counts(k) / k

    def recalls(self, k: int) -> NDArray[np.float64]:
        """Returns float64 [q]: the proportion of true pictures that are among the first k ranks."""
        return self.hit_counts(k) / self.relevant

    def mean_precisions(self) -> NDArray[np.float64]:
        """Returns float64 [k]: mean precision at the ranks 1 to k (DELF's MeanPrecisions)."""
        shares: NDArray[np.float64] = np.cumsum(self.hits.mean(axis=0)) / np.arange(1, self.k + 1)
        return shares

    def first_hits(self) -> NDArray[np.int64]:
        """Returns int64 [q]: the rank (from 1) of the first hit; k + 1 without a hit."""
        return np.where(self.hits.any(axis=1), self.hits.argmax(axis=1) + 1, self.k + 1)

    def mean_median_position(self) -> tuple[float, float]:
        """Returns mean and median of `first_hits` (DELF's MeanMedianPosition)."""
        first = self.first_hits()
        return float(first.mean()), float(np.median(first))


def average_precisions(
    hits: NDArray[np.bool_], relevant: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns AP@k of each query: float64 [q], 0 to 1.

    Args:
        hits: bool [q, k].
        relevant: int [q], the number of true pictures.

    Raises:
        ValueError: a query has no true picture, or more hits than true pictures.
    """
    check_relevant(hits, relevant)
    k = hits.shape[1]
    count = np.zeros(len(hits))
    total = np.zeros(len(hits))
    for rank in range(k):  # a loop over the ranks needs no copy of the input
        hit = hits[:, rank]
        count += hit
        total += np.where(hit, count / (rank + 1), 0.0)
    average: NDArray[np.float64] = total / np.minimum(relevant, k)
    return average


def judge_retrieval(
    submission: RetrievalSubmission,
    truth: RetrievalTruth,
    usage: str | None = None,
    *,
    k: int = MAX_IMAGES,
) -> RetrievalResult:
    """Returns the hits of a submission.

    Args:
        submission: the lists; a query without a list has no hits and counts in every mean.
        truth: the solution; Ignored queries are not scored.
        usage: "Public", "Private", or None for all rows that are not Ignored.
        k: the number of ranks that count (in the contest: 100).

    Raises:
        SubmissionError: the truth lacks a query of the submission, or every query is Ignored.
        UsageError: the solution has no row of that usage.
        ValueError: k is below 1, or a scored query has no true picture.
    """
    check_k(k, k)
    lists: dict[str, tuple[str, ...]] = {}
    for row, (query, images) in enumerate(
        zip(submission.query_ids, submission.images, strict=True)
    ):
        if query not in truth.row_of:
            where = submission.where(row)
            raise unknown_id(query, truth.row_of, where=where, source=truth.source)
        lists[query] = images
    rows = truth.rows(usage)
    if not rows:
        raise SubmissionError("every query is Ignored", where=truth.source)
    hits = np.zeros((len(rows), k), dtype=bool)
    for place, row in enumerate(rows):
        wanted = set(truth.images[row])
        for rank, image in enumerate(lists.get(truth.query_ids[row], ())[:k]):
            if image in wanted:
                wanted.remove(image)  # a repeat is not a second hit
                hits[place, rank] = True
    return RetrievalResult(
        tuple(truth.query_ids[row] for row in rows),
        hits,
        np.array([len(truth.images[row]) for row in rows], dtype=np.int64),
    )


def judge_neighbours(
    neighbours: Neighbours,
    gallery_labels: Sequence[tuple[str, ...]],
    query_labels: Sequence[tuple[str, ...]],
) -> RetrievalResult:
    """Returns the hits of a search: gallery pictures that share a landmark with the query.

    Queries without a landmark of the gallery are left out.

    Args:
        neighbours: rows of the gallery, best first, for q queries.
        gallery_labels: the landmarks of each gallery row; empty for a distractor.
        query_labels: the landmarks of each of the q queries.

    Raises:
        SubmissionError: no query shows a landmark of the gallery.
        ValueError: the number of query labels differs from the number of queries.
    """
    if len(query_labels) != len(neighbours):
        raise ValueError(f"{len(neighbours)} queries, {len(query_labels)} labels")
    rows_of: dict[str, list[int]] = {}
    for row, labels in enumerate(gallery_labels):
        for label in labels:
            rows_of.setdefault(label, []).append(row)
    ids, hits, relevant = [], [], []
    for query, nearest, labels in zip(
        neighbours.query_ids, neighbours.rows, query_labels, strict=True
    ):
        wanted = np.unique([row for label in labels for row in rows_of.get(label, ())])
        if wanted.size:
            ids.append(query)
            hits.append(np.isin(nearest, wanted) & (nearest != NO_ROW))
            relevant.append(wanted.size)
    if not ids:
        raise SubmissionError("no query shows a landmark of the gallery", where="queries")
    return RetrievalResult(tuple(ids), np.array(hits), np.array(relevant, dtype=np.int64))


def check_k(k: int, ranks: int) -> int:
    """Returns k; raises ValueError unless it is between 1 and the number of ranks."""
    if not 1 <= k <= ranks:
        raise ValueError(f"k must be between 1 and {ranks}, got {k}")
    return k


def check_relevant(hits: NDArray[np.bool_], relevant: NDArray[np.integer]) -> None:
    """Raises ValueError unless the average precision of every query is defined."""
    if hits.dtype != np.bool_ or hits.ndim != 2 or not hits.shape[1] or not hits.shape[0]:
        raise ValueError(f"hits must be bool [q, k], not empty, got {hits.dtype} {hits.shape}")
    if (relevant < 1).any():
        raise ValueError("a query has no true picture: its average precision is not defined")
    if (hits.sum(axis=1) > relevant).any():
        raise ValueError("a query has more hits than true pictures")
