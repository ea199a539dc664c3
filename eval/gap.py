"""GAP: global average precision, also micro-AP: the score of the landmark recognition contests.

All answers of all queries are pooled and ranked by falling confidence; with P(i) the share of
right answers among the first i, GAP = (1/M) * sum of P(i) over the right answers, where M is the
number of queries that show a landmark (Kaggle's definition; DELF, metrics.py; FACTS 1.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.judged import Judged, judge, require_positives
from lmk.eval.submission import Submission
from lmk.eval.truth import Truth


@dataclass(frozen=True, eq=False)
class GapResult:
    """A GAP with all that it was made of.

    Attributes:
        value: the GAP, 0 to 1.
        positives: M, the number (with weights: the sum of weights) of queries with a landmark.
        order: int64 [n], the row that stands at each rank, best first. Rows are the caller's.
        precision: float64 [n], P(i): the share of right answers up to each rank.
        correct: bool [q], by row.
        gain: float64 [q], by row: what the row gives to `value`, 0 where wrong or blank. They sum
            to `value`.
    """

    value: float
    positives: float
    order: NDArray[np.int64]
    precision: NDArray[np.float64]
    correct: NDArray[np.bool_]
    gain: NDArray[np.float64]

    @property
    def predictions(self) -> int:
        """N: the number of answers that were ranked."""
        return len(self.order)

    def recall(self) -> NDArray[np.float64]:
        """float64 [n]: right answers up to each rank, over M; unweighted results only."""
        return np.cumsum(self.correct[self.order]) / self.positives


def gap(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    positives: int,
    *,
    tie_order: NDArray[np.integer] | None = None,
) -> GapResult:
    """GAP of n answers.

    Args:
        confidence: float [n], of any scale; only the order matters.
        correct: bool [n].
        positives: M, the number of queries that show a landmark, answered or not.
        tie_order: int [n], which of two answers of equal confidence ranks first (the smaller);
            the contest takes the query id in ascending order. None: the rows' own order.

    Raises:
        ValueError: M is 0 or smaller than the number of right answers, shapes differ, NaN.
    """
    check_answers(confidence, correct, positives)
    order = ranking(confidence, tie_order)
    hits = correct[order]
    precision = np.cumsum(hits) / np.arange(1, len(order) + 1)
    gain = np.zeros(len(order))
    gain[order] = np.where(hits, precision, 0.0) / positives
    value = float(precision[hits].sum() / positives)
    return GapResult(value, positives, order, precision, correct, gain)


def gap_of(
    submission: Submission,
    truth: Truth,
    usage: str | None = None,
    *,
    ignore_non_landmark: bool = False,
) -> GapResult:
    """GAP of a submission against a solution; rows of the result are those of `judge`.

    Args:
        submission: the answers.
        truth: the solution.
        usage: "Public", "Private", or None for all that is not Ignored.
        ignore_non_landmark: leave answers to queries without a landmark out of the ranking, which
            tells how much of the loss is confusion between landmarks (the contest keeps them).

    Raises:
        SubmissionError: an unknown query id, or no query with a landmark.
        UsageError: no row of that usage.
    """
    return gap_of_judged(judge(submission, truth, usage), ignore_non_landmark=ignore_non_landmark)


def gap_of_judged(judged: Judged, *, ignore_non_landmark: bool = False) -> GapResult:
    """GAP of judged answers, by row of `judged`; see `gap_of`.

    Raises:
        SubmissionError: no query shows a landmark.
    """
    positives = require_positives(judged)
    ranked = judged.answered & judged.landmark if ignore_non_landmark else judged.answered
    rows = np.flatnonzero(ranked)
    result = gap(judged.confidence[rows], judged.correct[rows], positives)
    gain = np.zeros(len(judged))
    gain[rows] = result.gain
    return GapResult(
        result.value, positives, rows[result.order], result.precision, judged.correct, gain
    )


def ranking(
    confidence: NDArray[np.floating], tie_order: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """Row numbers by falling confidence, equal ones by rising `tie_order` (or row)."""
    if tie_order is None:
        return np.argsort(-confidence, kind="stable")
    return np.lexsort((tie_order, -confidence))


def check_answers(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], positives: float
) -> None:
    """Raises ValueError unless a GAP of these answers is defined."""
    if confidence.ndim != 1 or correct.shape != confidence.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"confidence float [n] and correct bool [n] are needed, got {confidence.shape} and "
            f"{correct.dtype} {correct.shape}"
        )
    if np.isnan(confidence).any():
        raise ValueError("a confidence is NaN")
    if positives <= 0:
        raise ValueError("no query shows a landmark: GAP is not defined")
    if np.count_nonzero(correct) > positives:
        raise ValueError(f"{np.count_nonzero(correct)} right answers but only {positives} queries")
